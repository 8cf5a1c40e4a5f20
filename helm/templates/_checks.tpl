{{/* What a schema can't tell. Each sentence says what is wrong and what to do. */}}
{{- define "pushgate.checks" -}}
{{- $values := .Values -}}
{{- $database := include "pushgate.secret" (dict "root" . "which" "databaseUrl") -}}
{{- if eq $values.mode "embedded" -}}
{{- if or (gt (int $values.web.replicas) 1) (gt (int $values.worker.replicas) 1) -}}
{{- fail "mode embedded keeps its state in SQLite, which only one pod can use: leave web.replicas and worker.replicas at 1, or set mode: distributed and name a PostgreSQL database in secrets.databaseUrl.existingSecret" -}}
{{- end -}}
{{- if or $values.web.autoscaling.enabled $values.worker.autoscaling.enabled -}}
{{- fail "mode embedded keeps its state in SQLite, which only one pod can use: switch autoscaling off, or set mode: distributed and name a PostgreSQL database in secrets.databaseUrl.existingSecret" -}}
{{- end -}}
{{- if $database -}}
{{- fail "a database is named, but mode embedded uses SQLite: set mode: distributed, or leave the database out" -}}
{{- end -}}
{{- else -}}
{{- if not $database -}}
{{- fail "mode distributed needs PostgreSQL: name the Secret with its URL in secrets.databaseUrl.existingSecret, or set cloudnativepg.enabled" -}}
{{- end -}}
{{- if not (include "pushgate.secret" (dict "root" . "which" "secretKey")) -}}
{{- fail "mode distributed needs one secret key for all pods: name the Secret that holds it in secrets.secretKey.existingSecret" -}}
{{- end -}}
{{- if not $values.packages.url -}}
{{- fail "mode distributed needs an object store, as its pods have no folder in common: set packages.url to s3://, gs:// or az://" -}}
{{- end -}}
{{- end -}}
{{- if and $values.connections.items (not (include "pushgate.secret" (dict "root" . "which" "adminToken"))) -}}
{{- fail "connections.items are applied over the REST API: name the Secret with its token in secrets.adminToken.existingSecret" -}}
{{- end -}}
{{- if and $values.connections.items (not $values.connections.existingSecret) -}}
{{- fail "the webhook secrets of connections.items are files: name the Secret that holds them in connections.existingSecret" -}}
{{- end -}}
{{- if and $values.externalSecret.enabled (not $values.externalSecret.storeRef.name) -}}
{{- fail "externalSecret.enabled needs the store's name: set externalSecret.storeRef.name" -}}
{{- end -}}
{{- if and $values.rabbitmq.topology (not $values.rabbitmq.enabled) -}}
{{- fail "rabbitmq.topology describes the cluster of this release: set rabbitmq.enabled too, or settings.amqpDeclare: false where the topology is somebody else's" -}}
{{- end -}}
{{- if gt (add $values.preStopSeconds 15) (int64 $values.terminationGracePeriodSeconds) -}}
{{- fail "a pod that is to end serves for preStopSeconds, and then needs up to 15 more: raise terminationGracePeriodSeconds" -}}
{{- end -}}
{{- range $component := list "web" "worker" -}}
{{- $autoscaling := (index $values $component).autoscaling -}}
{{- if and $autoscaling.enabled (gt (int $autoscaling.minReplicas) (int $autoscaling.maxReplicas)) -}}
{{- fail (printf "%[1]s.autoscaling.minReplicas is more than %[1]s.autoscaling.maxReplicas" $component) -}}
{{- end -}}
{{- end -}}
{{- if and $values.ingress.enabled (not $values.ingress.hosts) -}}
{{- fail "ingress.enabled without a host would take every host's webhooks: set ingress.hosts" -}}
{{- end -}}
{{- if and $values.httpRoute.enabled (not $values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.enabled needs the Gateway that it belongs to: set httpRoute.parentRefs" -}}
{{- end -}}
{{- end -}}
