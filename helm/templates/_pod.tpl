{{/*
Whether pods run as the image's own user, 10001. OpenShift's restricted policy gives each namespace a range of users, and
refuses pods that set a user outside it. Takes the root.
*/}}
{{- define "pushgate.imageUser" -}}
{{- $isOpenShift := .Capabilities.APIVersions.Has "security.openshift.io/v1" -}}
{{- if or (eq .Values.user "image") (and (eq .Values.user "auto") (not $isOpenShift)) }}true{{ end -}}
{{- end -}}

{{/* Takes the root. */}}
{{- define "pushgate.podSecurity" -}}
runAsNonRoot: true
{{- if include "pushgate.imageUser" . }}
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
{{- end }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Takes the root. */}}
{{- define "pushgate.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
{{- if include "pushgate.imageUser" . }}
runAsUser: 10001
runAsGroup: 10001
{{- end }}
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* What all pods have in common: no ServiceAccount token, no variables for Services. Takes the root. */}}
{{- define "pushgate.podCommon" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- include "pushgate.podSecurity" . | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* Image and security context of every container that runs Pushgate. Takes the root. */}}
{{- define "pushgate.containerCommon" -}}
image: {{ include "pushgate.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- include "pushgate.containerSecurity" . | nindent 2 }}
{{- end -}}

{{/* Resources of the containers that run once: the migration, the connections, the test. */}}
{{- define "pushgate.smallResources" -}}
requests: {cpu: 50m, memory: 128Mi, ephemeral-storage: 16Mi}
limits: {cpu: "1", memory: 512Mi, ephemeral-storage: 128Mi}
{{- end -}}

{{/* The files of `mounts`, such as the certificate authority of the database: first the volume mounts, then the volumes. */}}
{{- define "pushgate.mounts" -}}
{{- range $index, $mount := .Values.mounts }}
- {name: mount-{{ $index }}, mountPath: {{ $mount.mountPath | quote }}, readOnly: true}
{{- end }}
{{- end -}}
{{- define "pushgate.mountedVolumes" -}}
{{- range $index, $mount := .Values.mounts }}
- name: mount-{{ $index }}
  {{- if $mount.secret }}
  secret: {secretName: {{ $mount.secret | quote }}, defaultMode: 0440}
  {{- else }}
  configMap: {name: {{ $mount.configMap | quote }}}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The container that upgrades the schema. Takes the root. */}}
{{- define "pushgate.migration" -}}
name: migrate
{{ include "pushgate.containerCommon" . }}
args: [migrate]
env:
  {{- include "pushgate.secretVariables" (dict "root" . "which" (list "databaseUrl" "secretKey" "secretKeyPrevious")) | trim | nindent 2 }}
resources:
  {{- include "pushgate.smallResources" . | nindent 2 }}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  - {name: data, mountPath: /var/lib/pushgate}
  {{- with include "pushgate.mounts" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* The labels and annotations of a pod. Takes {root, component, annotations}; the chart's own take precedence. */}}
{{- define "pushgate.podMetadata" -}}
labels:
  {{- include "pushgate.labels" . | nindent 2 }}
  {{- with .root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (default (dict) .annotations) .root.Values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The pod of a role. Takes {root, component, resources, scratch: whether its data is lost with the pod}. */}}
{{- define "pushgate.pod" -}}
{{- $root := .root -}}
{{- $values := .root.Values -}}
{{- $annotations := dict "checksum/settings" (include "pushgate.settings" $root | sha256sum) -}}
metadata:
  {{- include "pushgate.podMetadata" (merge (dict "annotations" $annotations) .) | nindent 2 }}
spec:
  serviceAccountName: {{ include "pushgate.serviceAccount" $root }}
  {{- include "pushgate.podCommon" $root | nindent 2 }}
  # The children of git outlive it when a fetch is interrupted; the shared process namespace reaps them.
  shareProcessNamespace: true
  terminationGracePeriodSeconds: {{ int $values.terminationGracePeriodSeconds }}
  {{- if $values.topologySpread.enabled }}
  topologySpreadConstraints:
    {{- range $values.topologySpread.topologyKeys }}
    - topologyKey: {{ . }}
      maxSkew: 1
      whenUnsatisfiable: {{ $values.topologySpread.whenUnsatisfiable }}
      labelSelector:
        matchLabels:
          {{- include "pushgate.selector" $ | nindent 10 }}
    {{- end }}
  {{- end }}
  {{- if include "pushgate.databaseIsMade" $root }}
  initContainers:
    - {{- include "pushgate.migration" $root | nindent 6 }}
  {{- end }}
  containers:
    - name: pushgate
      {{- include "pushgate.containerCommon" $root | nindent 6 }}
      args: [serve, --role, {{ .component }}]
      {{- with $values.packages.existingSecret }}
      envFrom:
        - secretRef: {name: {{ . | quote }}}
      {{- end }}
      env:
        - {name: PUSHGATE_HOST, value: {{ $values.listen | quote }}}
        - {name: PUSHGATE_CONFIG, value: /etc/pushgate/settings/settings.yaml}
        {{- if contains ":" $values.listen }}
        - {name: PUSHGATE_URL, value: "http://[::1]:8080"}
        {{- end }}
        {{- $which := list "secretKey" "secretKeyPrevious" "databaseUrl" "amqpUrl" "adminToken" }}
        {{- include "pushgate.secretVariables" (dict "root" $root "which" $which) | trim | nindent 8 }}
        {{- range $name, $value := $values.env }}
        - {name: {{ $name }}, value: {{ $value | quote }}}
        {{- end }}
      ports:
        - {name: http, containerPort: 8080, protocol: TCP}
      startupProbe:
        httpGet: {path: /startupz, port: http}
        periodSeconds: 2
        failureThreshold: 60
      livenessProbe:
        httpGet: {path: /livez, port: http}
        periodSeconds: 10
        timeoutSeconds: 5
      readinessProbe:
        httpGet: {path: /readyz, port: http}
        periodSeconds: 5
        timeoutSeconds: 5
      {{- with int $values.preStopSeconds }}
      lifecycle:
        preStop:
          sleep: {seconds: {{ . }}}
      {{- end }}
      resources:
        {{- toYaml .resources | nindent 8 }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        - {name: data, mountPath: /var/lib/pushgate}
        - {name: settings, mountPath: /etc/pushgate/settings, readOnly: true}
        {{- with include "pushgate.mounts" $root | trim }}
        {{- . | nindent 8 }}
        {{- end }}
  volumes:
    - name: tmp
      emptyDir: {sizeLimit: 256Mi}
    - name: settings
      configMap: {name: {{ include "pushgate.fullname" $root }}}
    {{- if .scratch }}
    - name: data
      emptyDir: {sizeLimit: 256Mi}
    {{- end }}
    {{- with include "pushgate.mountedVolumes" $root | trim }}
    {{- . | nindent 4 }}
    {{- end }}
{{- end -}}
