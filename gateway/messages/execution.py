"""What is executed: a step, a pipeline or a task of valohai.yaml, with all values that are known.

The names of our own fields are in snake_case. A `definition` alone has the spelling of valohai.yaml.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from gateway.messages.schema import Part

ParameterValue = str | int | float | bool | list[str | int | float | bool]

Number = int | float

EdgeType = Literal[
    "dependency", "deployment", "environment-variable", "file", "input", "metadata", "output", "parameter"
]


class Output(Part):
    """A declared output of a step."""

    name: str = Field(description="the output's name")
    description: str | None = Field(default=None, description="for people; null if there is none")


class Mount(Part):
    """A folder of the host, or a volume, to mount into the container."""

    source: str = Field(description="the path on the host, or whatever the type requires")
    destination: str = Field(description="the path in the container")
    readonly: bool = Field(default=False, description="whether to mount it read-only")
    type: str | None = Field(default=None, description="such as nfs; null for a folder of the host")
    options: dict[str, Any] = Field(
        default_factory=dict, description="options of the mount, as valohai.yaml writes them"
    )


class ResourceRange(Part):
    """How much of a resource a container gets."""

    min: Number | None = Field(default=None, description="the least; null: not given")
    max: Number | None = Field(default=None, description="the most; null: not given")


class Resources(Part):
    """The resources of a container on Kubernetes."""

    cpu: ResourceRange = Field(default_factory=ResourceRange, description="processors")
    memory: ResourceRange = Field(default_factory=ResourceRange, description="megabytes of memory")
    devices: dict[str, Number] = Field(
        default_factory=dict, description="numbers of devices by name, such as nvidia.com/gpu"
    )


class StepExecution(Part):
    """A step as the commit's valohai.yaml defines it, with all known parameters and inputs applied."""

    kind: Literal["step"] = Field(default="step", description="always step")
    name: str = Field(description="the step's name")
    image: str = Field(description="the container image")
    command: tuple[str, ...] = Field(
        description="shell commands, with the known parameters filled in. In a task and in a pipeline's"
        " node, {parameter:NAME} is a placeholder for the arguments of a parameter whose value varies or is"
        " supplied by an edge: its value passed as the definition says (pass-as and so on), each argument"
        " quoted for a POSIX shell, and nothing if it has no value. {parameter-value:NAME} is a placeholder"
        " for the quoted value alone"
    )
    parameters: dict[str, ParameterValue] = Field(
        description="every parameter whose value is known; none of those that vary or that an edge supplies"
    )
    inputs: dict[str, tuple[str, ...]] = Field(description="the URLs of each input")
    outputs: tuple[Output, ...] = Field(description="the declared outputs")
    environment: str | None = Field(description="the platform's name of the environment to run in")
    environment_variables: dict[str, str] = Field(description="plain values; secrets stay with the platform")
    environment_variable_groups: tuple[str, ...] = Field(description="groups of variables, by name")
    mounts: tuple[Mount, ...] = Field(description="what to mount into the container")
    cache_volumes: tuple[str, ...] = Field(description="Kubernetes persistent volume claims for inputs")
    resources: Resources = Field(description="what the container gets")
    runtime_config_preset: str | None = Field(description="id or slug of the platform's preset")
    upload_store: str | None = Field(description="the data store for outputs, by name or UUID")
    autorestart: bool | None = Field(description="whether to restart after a spot instance is reclaimed")
    stop_condition: str | None = Field(description="an expression over metadata that ends the execution")
    time_limit: float | None = Field(description="seconds; null for no limit")
    no_output_timeout: float | None = Field(
        description="seconds without output; null for the platform's default"
    )
    source_path: str | None = Field(description="the source file from which the step was generated")
    definition: dict[str, Any] = Field(
        description="the whole step in valohai.yaml's own spelling, with a node's override applied: type,"
        " pass-as, pass-true-as, pass-false-as, multiple and multiple-separator of each parameter, filename,"
        " keep-directories and download of each input, and so on"
    )


class Variation(Part):
    """How a parameter of a task varies."""

    style: Literal["linear", "logspace", "multiple", "random", "single"] = Field(
        description="how the values are made"
    )
    rules: dict[str, Any] = Field(
        description="what the style requires, as valohai.yaml writes it: items for multiple, value for"
        " single, start, end and step or count for linear, base, start, end and count for logspace,"
        " distribution, min, max and seed for random; integerify and numberify convert the values"
    )


class TaskExecution(Part):
    """A task as the commit's valohai.yaml defines it: one step, executed with many sets of parameters."""

    kind: Literal["task"] = Field(default="task", description="always task")
    name: str = Field(description="the task's name; of a node that names only a step, the node's")
    type: Literal["bayesian_tpe", "distributed", "grid_search", "manual_search", "random_search"] = Field(
        description="how the sets of parameters are chosen"
    )
    step: StepExecution = Field(description="the step, with the values that all executions share")
    parameters: dict[str, Variation] = Field(description="how each parameter varies, by name")
    parameter_sets: tuple[dict[str, ParameterValue | None], ...] = Field(
        description="the sets of a manual search"
    )
    defaults: dict[str, ParameterValue] = Field(
        description="the values of parameters that a set of `parameter_sets` leaves out or has as null"
    )
    execution_count: int | None = Field(description="how many executions at most; null: not given")
    execution_batch_size: int | None = Field(description="how many executions in a batch; null: not given")
    maximum_queued_executions: int | None = Field(
        description="how many executions may be queued at once; null: not given"
    )
    optimization_target_metric: str | None = Field(description="the metadata to optimize; null: not given")
    optimization_target_value: Number | None = Field(description="the value to reach; null: not given")
    engine: str | None = Field(description="the platform's engine for optimization; null: not given")
    on_child_error: Literal["continue-and-complete", "continue-and-error", "stop-all-and-error"] | None = (
        Field(description="what happens when an execution fails; null for the platform's default")
    )
    stop_condition: str | None = Field(description="an expression over metadata that ends the task")
    reuse_children: bool = Field(description="whether results of equal executions may be reused")
    definition: dict[str, Any] = Field(description="the whole task in valohai.yaml's own spelling")


class NodeAction(Part):
    """What a pipeline does when something happens to a node."""

    when: tuple[str, ...] = Field(description="events: node-starting, node-complete, node-error")
    if_: tuple[str, ...] = Field(
        alias="if", description="expressions over the node's metadata, all of which have to hold"
    )
    then: tuple[str, ...] = Field(description="what to do: stop-pipeline, error-pipeline, noop")


class Node(Part):
    """What all kinds of nodes have."""

    name: str = Field(description="the node's name, unique in the pipeline: edges refer to it")
    actions: tuple[NodeAction, ...] = Field(description="actions on the node's events")
    on_error: Literal["stop-all", "stop-next", "continue", "retry"] = Field(
        description="what happens to the pipeline when the node fails"
    )


MergeMode = Literal["replace", "append"]


class ExecutionNode(Node):
    """A node that executes a step once."""

    kind: Literal["execution"] = Field(default="execution", description="always execution")
    edge_merge_mode: MergeMode = Field(
        description="whether the files of an edge replace an input's URLs or are appended to them"
    )
    execution: StepExecution = Field(
        description="the step, with the node's override and the pipeline's parameters applied"
    )


class TaskNode(Node):
    """A node that executes a task. A node that names only a step is a grid search."""

    kind: Literal["task"] = Field(default="task", description="always task")
    edge_merge_mode: MergeMode = Field(
        description="whether the files of an edge replace an input's URLs or are appended to them"
    )
    execution: TaskExecution = Field(
        description="the task, with the node's override and the pipeline's parameters applied. A list of"
        " values for a parameter that takes one value varies that parameter"
    )


class DeploymentNode(Node):
    """A node that deploys the results of other nodes."""

    kind: Literal["deployment"] = Field(default="deployment", description="always deployment")
    deployment: str = Field(description="the deployment's name")
    aliases: tuple[str, ...] = Field(description="the aliases of the new version")
    endpoints: tuple[str, ...] = Field(description="the names of the endpoints to deploy")
    definition: dict[str, Any] | None = Field(
        description="the whole deployment in valohai.yaml's own spelling; null if the file does not define it"
    )
    endpoint_definitions: dict[str, dict[str, Any]] = Field(
        description="the endpoints that the file defines, in valohai.yaml's own spelling, by name"
    )


class Edge(Part):
    """An edge: something of the source node becomes something of the target node."""

    source_node: str = Field(description="the name of the node that has to end first")
    source_type: EdgeType = Field(description="such as output, metadata, parameter, input")
    source_key: str = Field(
        description="which: a file name or glob of outputs, a metadata key, the name of a parameter or input"
    )
    target_node: str = Field(description="the name of the node that receives it")
    target_type: EdgeType = Field(description="such as input, parameter, environment-variable, file")
    target_key: str = Field(description="which: the name of an input, a parameter, a variable or a file")
    configuration: dict[str, Any] = Field(
        default_factory=dict, description="options of the edge, as valohai.yaml writes them; usually empty"
    )


class ParameterTarget(Part):
    """A parameter of a node that a parameter of the pipeline sets."""

    node: str = Field(description="the node's name")
    parameter: str = Field(description="the name of the parameter of the node's step")


class PipelineParameter(Part):
    """A parameter of a pipeline. Its value is already filled in in the nodes."""

    value: ParameterValue | None = Field(description="from the trigger or the default; null: none is set")
    targets: tuple[ParameterTarget, ...] = Field(description="the parameters that have this value")
    category: str | None = Field(description="a heading for people; null if there is none")
    description: str | None = Field(description="for people; null if there is none")


class PipelineExecution(Part):
    """A pipeline as the commit's valohai.yaml defines it, with all values applied that are known."""

    kind: Literal["pipeline"] = Field(default="pipeline", description="always pipeline")
    name: str = Field(description="the pipeline's name")
    nodes: tuple[Annotated[ExecutionNode | TaskNode | DeploymentNode, Field(discriminator="kind")], ...] = (
        Field(description="the nodes, in the file's order: at most 200")
    )
    edges: tuple[Edge, ...] = Field(description="the edges between the nodes: at most 2000")
    parameters: dict[str, PipelineParameter] = Field(description="the parameters of the pipeline, by name")
    reuse_executions: bool = Field(description="whether results of unchanged nodes may be reused")
    definition: dict[str, Any] = Field(description="the whole pipeline in valohai.yaml's own spelling")


Execution = Annotated[StepExecution | PipelineExecution | TaskExecution, Field(discriminator="kind")]
