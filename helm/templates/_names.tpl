{{/*
What every name begins with. 36 letters at most: the pods of a RabbitmqCluster have a label made of its name, 27 letters,
and may have 63. Two long names that begin alike stay two.
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
The name of a Kubernetes object for something of the broker's, whose names may hold anything. Where that is more than
dots, or too long, a hash keeps two names apart.
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

{{/* What never changes, and so may stand in selectors. Takes {root, component}. */}}
{{- define "pushgate.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
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

{{- define "pushgate.distributed" -}}
{{- if eq .Values.mode "distributed" }}true{{ end -}}
{{- end -}}

{{/* The component that has the door, and the one that has mirrors: in embedded mode they are one. */}}
{{- define "pushgate.door" -}}{{ ternary "web" "all" (eq .Values.mode "distributed") }}{{- end -}}
{{- define "pushgate.fetcher" -}}{{ ternary "worker" "all" (eq .Values.mode "distributed") }}{{- end -}}

{{- define "pushgate.fetcherName" -}}
{{ include "pushgate.fullname" . }}{{ if eq .Values.mode "distributed" }}-worker{{ end }}
{{- end -}}

{{- define "pushgate.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "pushgate.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{/* Where the chart makes none, the one that is named is there already. */}}
{{- define "pushgate.migrationServiceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ include "pushgate.fullname" . }}-migrate
{{- else -}}
{{ include "pushgate.serviceAccount" . }}
{{- end -}}
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
