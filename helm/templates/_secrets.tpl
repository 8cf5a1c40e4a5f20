{{/*
The Secret that contains a secret, as {name, key} in JSON, or empty. Takes {root, which}. In order of precedence: the
named Secret, the one that External Secrets creates, the one that an operator creates with its cluster.
*/}}
{{- define "pushgate.secret" -}}
{{- $values := .root.Values -}}
{{- $full := include "pushgate.fullname" .root -}}
{{- $own := index $values.secrets .which -}}
{{- if $own.existingSecret -}}
{{ dict "name" $own.existingSecret "key" $own.key | toJson }}
{{- else if and $values.externalSecret.enabled (index $values.externalSecret.data .which).key -}}
{{ dict "name" $full "key" $own.key | toJson }}
{{- else if and (eq .which "databaseUrl") $values.cloudnativepg.enabled -}}
{{ dict "name" (printf "%s-pg-app" $full) "key" "uri" | toJson }}
{{- else if and (eq .which "amqpUrl") $values.rabbitmq.enabled -}}
{{ dict "name" (printf "%s-rabbitmq-default-user" $full) "key" "connection_string" | toJson }}
{{- end -}}
{{- end -}}

{{/* Environment variables for the configured secrets. Takes {root, which: [...]}. */}}
{{- define "pushgate.secretVariables" -}}
{{- range .which }}
{{- $found := include "pushgate.secret" (dict "root" $.root "which" .) }}
{{- if $found }}
{{- $found = fromJson $found }}
- name: PUSHGATE_{{ . | snakecase | upper }}
  valueFrom:
    secretKeyRef: {name: {{ $found.name | quote }}, key: {{ $found.key | quote }}}
{{- end }}
{{- end }}
{{- end -}}

{{/* Whether this release creates the database, or the Secret with its URL or the secret key: nothing can migrate before the release. */}}
{{- define "pushgate.databaseIsMade" -}}
{{- $secrets := .Values.secrets -}}
{{- if and (eq .Values.mode "distributed") (not (and $secrets.databaseUrl.existingSecret $secrets.secretKey.existingSecret)) }}true{{ end -}}
{{- end -}}
