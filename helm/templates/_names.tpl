{{/*
The prefix of every name, at most 36 characters: the pods of a RabbitmqCluster have a label that adds 27 characters to its
name, and a label may have 63. Long names with the same beginning stay distinct.
*/}}
{{- define "pushgate.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- $full = default $full .Values.fullnameOverride | replace "." "-" -}}
{{- if gt (len $full) 36 -}}
{{ $full | trunc 27 | trimSuffix "-" }}-{{ sha256sum $full | trunc 8 }}
{{- else -}}
{{ $full }}
{{- end -}}
{{- end -}}

{{/*
The name of a Kubernetes object for an exchange or queue, whose name may contain any character. If other characters than
dots are replaced, or the name is too long, a hash keeps names distinct.
*/}}
{{- define "pushgate.objectName" -}}
{{- $plain := . | replace "." "-" -}}
{{- $name := regexReplaceAll "[^a-z0-9-]+" (lower $plain) "-" | trunc 200 | trimSuffix "-" -}}
{{- if eq $name $plain -}}
{{ $name }}
{{- else -}}
{{ $name }}-{{ sha256sum . | trunc 8 }}
{{- end -}}
{{- end -}}

{{/* Labels that never change, for selectors. Takes {root, component}. */}}
{{- define "pushgate.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{/* Takes {root, component}. */}}
{{- define "pushgate.labels" -}}
{{ include "pushgate.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* Maps as one map, in YAML, or nothing if it is empty. Takes a list; a later map takes precedence. */}}
{{- define "pushgate.joined" -}}
{{- $joined := dict -}}
{{- range $map := . -}}
{{- range $key, $value := $map }}{{ $_ := set $joined $key $value }}{{ end -}}
{{- end -}}
{{- with $joined }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{/* The metadata of an object or, without a name, of a pod. Takes {root, component, name, labels, annotations}. */}}
{{- define "pushgate.metadata" -}}
{{- with .name -}}
name: {{ . }}
{{ end -}}
labels:
  {{- include "pushgate.joined" (list .root.Values.commonLabels .labels (include "pushgate.labels" . | fromYaml)) | nindent 2 }}
{{- with include "pushgate.joined" (list .root.Values.commonAnnotations .annotations) }}
annotations:
  {{- . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "pushgate.distributed" -}}
{{- if eq .Values.mode "distributed" }}true{{ end -}}
{{- end -}}

{{/* The component with the webhook endpoint, and the component with the mirrors. In embedded mode, both are the same. */}}
{{- define "pushgate.receiver" -}}{{ ternary "web" "all" (eq .Values.mode "distributed") }}{{- end -}}
{{- define "pushgate.fetcher" -}}{{ ternary "worker" "all" (eq .Values.mode "distributed") }}{{- end -}}

{{- define "pushgate.fetcherName" -}}
{{ include "pushgate.fullname" . }}{{ if eq .Values.mode "distributed" }}-worker{{ end }}
{{- end -}}

{{- define "pushgate.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ default $.Chart.AppVersion .tag }}{{ end -}}
{{- end -}}
{{- end -}}

{{- define "pushgate.serviceUrl" -}}
http://{{ include "pushgate.fullname" . }}.{{ .Release.Namespace }}.svc:{{ .Values.service.port }}
{{- end -}}

{{- define "pushgate.publicUrl" -}}
{{- $values := .Values -}}
{{- if $values.publicUrl -}}
{{ $values.publicUrl }}
{{- else if and $values.httpRoute.enabled $values.httpRoute.hostnames -}}
https://{{ first $values.httpRoute.hostnames }}
{{- else if and $values.ingress.enabled $values.ingress.hosts -}}
{{ ternary "https" "http" (not (empty $values.ingress.tls)) }}://{{ first $values.ingress.hosts }}
{{- else -}}
{{ include "pushgate.serviceUrl" . }}
{{- end -}}
{{- end -}}
