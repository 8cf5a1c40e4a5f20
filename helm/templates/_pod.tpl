{{/*
Whether pods run as the image's own user, 10001. OpenShift's restricted policy gives each namespace a range of users, and
refuses pods that set a user outside it. Takes a component with its root.
*/}}
{{- define "pushgate.imageUser" -}}
{{- $isOpenShift := .root.Capabilities.APIVersions.Has "security.openshift.io/v1" -}}
{{- if or (eq .pod.user "image") (and (eq .pod.user "auto") (not $isOpenShift)) }}true{{ end -}}
{{- end -}}

{{/* Takes a component with its root. */}}
{{- define "pushgate.podSecurity" -}}
{{- $user := ternary (dict "runAsUser" 10001 "runAsGroup" 10001 "fsGroup" 10001) (dict) (not (empty (include "pushgate.imageUser" .))) -}}
{{- $own := dict "runAsNonRoot" true "fsGroupChangePolicy" "OnRootMismatch" "seccompProfile" (dict "type" "RuntimeDefault") -}}
{{ include "pushgate.joined" (list $user $own .pod.securityContext) }}
{{- end -}}

{{/* Takes a component with its root. */}}
{{- define "pushgate.containerSecurity" -}}
{{- $user := ternary (dict "runAsUser" 10001 "runAsGroup" 10001) (dict) (not (empty (include "pushgate.imageUser" .))) -}}
{{- $own := dict "allowPrivilegeEscalation" false "privileged" false "readOnlyRootFilesystem" true "runAsNonRoot" true -}}
{{- $rights := dict "capabilities" (dict "drop" (list "ALL")) "seccompProfile" (dict "type" "RuntimeDefault") -}}
{{ include "pushgate.joined" (list $user $own $rights .pod.containerSecurityContext) }}
{{- end -}}

{{/* The metadata of a pod. Takes a component with its root, and {annotations}; the chart's own take precedence. */}}
{{- define "pushgate.podMetadata" -}}
{{- $annotations := include "pushgate.joined" (list .pod.annotations .annotations) | fromYaml -}}
{{ include "pushgate.metadata" (dict "root" .root "component" .component "labels" .pod.labels "annotations" $annotations) }}
{{- end -}}

{{/*
The spec of a pod. Takes a component with its root, and the names of templates: {container: the main container, volumes: volumes
other than the ones for /tmp and from values, migrates: whether the migration runs first}.
*/}}
{{- define "pushgate.podSpec" -}}
{{- $pod := .pod -}}
serviceAccountName: {{ .account }}
automountServiceAccountToken: {{ $pod.automountServiceAccountToken }}
enableServiceLinks: false
securityContext:
  {{- include "pushgate.podSecurity" . | nindent 2 }}
terminationGracePeriodSeconds: {{ int $pod.terminationGracePeriodSeconds }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "priorityClassName" "schedulerName" "runtimeClassName" "hostAliases" "dnsPolicy" "dnsConfig" }}
{{- with get $pod $key }}
{{ dict $key . | toYaml }}
{{- end }}
{{- end }}
{{- if not $pod.hostUsers }}
hostUsers: false
{{- end }}
{{- with $pod.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  {{- $picked := dict "labelSelector" (dict "matchLabels" (include "pushgate.selector" $ | fromYaml)) }}
  - {{- include "pushgate.joined" (list $picked .) | nindent 4 }}
  {{- end }}
{{- end }}
{{- if or .migrates $pod.extraInitContainers }}
initContainers:
  {{- with $pod.extraInitContainers }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- if .migrates }}
  - {{- include "pushgate.migrate" . | nindent 4 }}
  {{- end }}
{{- end }}
containers:
  - {{- include .container . | nindent 4 }}
  {{- with $pod.extraContainers }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumes:
  - name: tmp
    emptyDir: {sizeLimit: 256Mi}
  {{- with .volumes }}
  {{- include . $ | trim | nindent 2 }}
  {{- end }}
  {{- range $index, $mount := $pod.mounts }}
  - name: mount-{{ $index }}
    {{- if $mount.secret }}
    secret: {secretName: {{ $mount.secret | quote }}, defaultMode: 0440}
    {{- else }}
    configMap: {name: {{ $mount.configMap | quote }}}
    {{- end }}
  {{- end }}
  {{- with $pod.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/*
What every container of the chart has. Takes {of: a component with its root, resources, variables and volumeMounts: in YAML,
variablesFrom: a Secret}.
*/}}
{{- define "pushgate.containerCommon" -}}
{{- $pod := .of.pod -}}
image: {{ include "pushgate.image" .of.root | quote }}
imagePullPolicy: {{ .of.root.Values.image.pullPolicy }}
securityContext:
  {{- include "pushgate.containerSecurity" .of | nindent 2 }}
{{- if or .variablesFrom $pod.envFrom }}
envFrom:
  {{- with .variablesFrom }}
  - secretRef: {name: {{ . | quote }}}
  {{- end }}
  {{- with $pod.envFrom }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- if or .variables $pod.env }}
env:
  {{- with .variables }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- range $name, $value := $pod.env }}
  - {{- merge (dict "name" $name) (ternary $value (dict "value" $value) (kindIs "map" $value)) | toYaml | nindent 4 }}
  {{- end }}
{{- end }}
resources:
  {{- toYaml (default .of.resources .resources) | nindent 2 }}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  {{- with .volumeMounts }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- range $index, $mount := $pod.mounts }}
  - {name: mount-{{ $index }}, mountPath: {{ $mount.mountPath | quote }}, readOnly: true}
  {{- end }}
  {{- with $pod.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* The container that upgrades the schema, in a Job or before another. Takes a component with its root. */}}
{{- define "pushgate.migrate" -}}
{{- $secrets := include "pushgate.secretVariables" (dict "root" .root "which" (list "databaseUrl" "secretKey" "secretKeyPrevious")) | trim -}}
{{- $own := dict "of" . "resources" .root.Values.migration.resources "variables" $secrets "volumeMounts" "- {name: data, mountPath: /var/lib/pushgate}" -}}
name: migrate
args: [migrate]
{{ include "pushgate.containerCommon" $own }}
{{- end -}}

{{/* The volume for data that is lost with the pod. */}}
{{- define "pushgate.scratch" -}}
- name: data
  emptyDir: {sizeLimit: 256Mi}
{{- end -}}

{{/* The container of a role. Takes a component with its root. */}}
{{- define "pushgate.serve" -}}
{{- $values := .root.Values -}}
{{- $own := dict "of" . "variablesFrom" $values.packages.existingSecret "variables" (include "pushgate.serveVariables" .root) "volumeMounts" (include "pushgate.serveMounts" .) -}}
name: pushgate
args: [serve, --role, {{ .component }}]
{{ include "pushgate.containerCommon" $own }}
ports:
  - {name: http, containerPort: 8080, protocol: TCP}
startupProbe:
  httpGet: {path: /startupz, port: http}
  {{- toYaml .pod.startupProbe | nindent 2 }}
livenessProbe:
  httpGet: {path: /livez, port: http}
  {{- toYaml .pod.livenessProbe | nindent 2 }}
readinessProbe:
  httpGet: {path: /readyz, port: http}
  {{- toYaml .pod.readinessProbe | nindent 2 }}
{{- with int .pod.preStopSeconds }}
lifecycle:
  preStop:
    sleep: {seconds: {{ . }}}
{{- end }}
{{- end -}}

{{- define "pushgate.serveVariables" -}}
- {name: PUSHGATE_HOST, value: {{ .Values.listen | quote }}}
- {name: PUSHGATE_CONFIG, value: /etc/pushgate/settings/settings.yaml}
{{- if contains ":" .Values.listen }}
- {name: PUSHGATE_URL, value: "http://[::1]:8080"}
{{- end }}
{{- with .Values.tracing.endpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- include "pushgate.secretVariables" (dict "root" . "which" (list "secretKey" "secretKeyPrevious" "databaseUrl" "amqpUrl" "adminToken")) }}
{{- end -}}

{{- define "pushgate.serveMounts" -}}
- {name: data, mountPath: /var/lib/pushgate}
- {name: settings, mountPath: /etc/pushgate/settings, readOnly: true}
{{- end -}}

{{/* The volumes of a role. Workers have a claim for their data. */}}
{{- define "pushgate.serveVolumes" -}}
- name: settings
  configMap: {name: {{ include "pushgate.fullname" .root }}}
{{- if eq .component "web" }}
{{ include "pushgate.scratch" . }}
{{- end }}
{{- end -}}

{{/* The pod template of a role. Takes a component with its root. */}}
{{- define "pushgate.servePod" -}}
{{- $templates := dict "container" "pushgate.serve" "volumes" "pushgate.serveVolumes" "migrates" (include "pushgate.databaseIsMade" .root) -}}
metadata:
  {{- $annotations := dict "checksum/settings" (include "pushgate.settings" .root | sha256sum) }}
  {{- include "pushgate.podMetadata" (merge (dict "annotations" $annotations) .) | nindent 2 }}
spec:
  # The children of git outlive it when a fetch is interrupted; the shared process namespace reaps them.
  shareProcessNamespace: true
  {{- include "pushgate.podSpec" (merge $templates .) | nindent 2 }}
{{- end -}}
