"""The guide for authors of runners: its examples are those of the schema, and its commands run a request."""

import gzip
import hashlib
import json
import re
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import jsonschema
import pytest

from gateway.messages.execution_request import schema
from testing.documents import GUIDE, with_examples


def test_the_guide_has_the_schema_s_examples() -> None:
    """If it fails: run `make documents`. Each example is whole, valid, and marked with its kind."""
    text = GUIDE.read_text()
    assert with_examples(text) == text
    shown = re.findall(r"<!-- example: (\w+) -->\n\n```json\n(.*?)\n```\n", text, re.DOTALL)
    made = [json.loads(example) for _, example in shown]
    assert made == schema()["examples"]
    assert [kind for kind, _ in shown] == [example["execution"]["kind"] for example in made]
    for example in made:
        jsonschema.Draft202012Validator(schema()).validate(example)


def by_hand(folder: Path, commands: Sequence[str], **damage: str) -> subprocess.CompletedProcess[str]:
    """Run the guide's commands for a request with these commands, and with damaged digests of its package."""
    archive = folder / "package.tar.gz"
    source = folder / "run.sh"
    source.write_text('echo "$GREETING" > "$VH_OUTPUTS_DIR/greeting"\n')
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, "run.sh")
    [request, *_] = schema()["examples"]
    request["package"] |= {
        "url": archive.as_uri(),
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
        "id": hashlib.sha256(gzip.decompress(archive.read_bytes())).hexdigest(),
        **damage,
    }
    request["execution"] |= {
        "command": commands,
        "environment_variables": {"GREETING": "it's $HOME\n", "NONE": ""},
    }
    (folder / "request.json").write_text(json.dumps(request))
    script = re.search(r"<!-- by hand -->\n\n```sh\n(.*?)\n```\n", GUIDE.read_text(), re.DOTALL)
    assert script is not None
    return subprocess.run(
        ["sh", "-c", script[1]], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )


def test_the_guide_s_commands_run_a_step(tmp_path: Path) -> None:
    """Each command has a shell of its own at the package's root, with the variables of the request."""
    done = by_hand(tmp_path, ["cd / && pwd", "sh run.sh"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n/\n")
    assert (tmp_path / "outputs" / "greeting").read_text() == "it's $HOME\n\n"


def test_the_guide_s_commands_stop_at_the_first_that_fails(tmp_path: Path) -> None:
    """With its status."""
    assert by_hand(tmp_path, ["exit 3", "sh run.sh"]).returncode == 3
    assert list((tmp_path / "outputs").iterdir()) == []


@pytest.mark.parametrize("digest", ["sha256", "id"])
def test_the_guide_s_commands_refuse_another_package(digest: str, tmp_path: Path) -> None:
    """Before they unpack it."""
    assert by_hand(tmp_path, ["sh run.sh"], **{digest: "0" * 64}).returncode == 1
    assert not (tmp_path / "code").exists()
