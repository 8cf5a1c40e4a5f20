{{/* A quantity of Kubernetes, such as 1.5Gi or 250m, as a number of units. */}}
{{- define "pushgate.quantity" -}}
{{- $units := dict "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $text := toString . -}}
{{- $unit := regexFind "[a-zA-Z]+$" $text -}}
{{- mulf (trimSuffix $unit $text | float64) (default 1 (get $units $unit)) -}}
{{- end -}}

{{/* Labels that controllers give pods, in JSON: in a template they are refused, or confuse the controller. */}}
{{- define "pushgate.controllersLabels" -}}
{{- list "pod-template-hash" "controller-revision-hash" "statefulset.kubernetes.io/pod-name" "apps.kubernetes.io/pod-index" "job-name" "controller-uid" "batch.kubernetes.io/job-name" "batch.kubernetes.io/controller-uid" "pushgate.dev/metrics" | toJson -}}
{{- end -}}

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
{{- range $component := list "web" "worker" -}}
{{- $resources := (index $values $component).resources -}}
{{- range $what, $request := $resources.requests -}}
{{- $limit := get (default (dict) $resources.limits) $what -}}
{{- if and $limit (gt (include "pushgate.quantity" $request | float64) (include "pushgate.quantity" $limit | float64)) -}}
{{- fail (printf "%s.resources asks for more %s (%v) than its limit (%v), which Kubernetes refuses: raise the limit" $component $what $request $limit) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $budget := default 53687091200 $values.settings.mirrorBudget -}}
{{- if le (include "pushgate.quantity" $values.worker.storage.size | float64) ($budget | float64) -}}
{{- fail (printf "worker.storage.size (%v) has no room for settings.mirrorBudget (%d bytes) and what else is kept there: raise the one, or lower the other" $values.worker.storage.size (int64 $budget)) -}}
{{- end -}}
{{- range $name := list "podLabels" "serviceMonitor.labels" -}}
{{- $labels := ternary $values.podLabels $values.serviceMonitor.labels (eq $name "podLabels") -}}
{{- range $label, $_ := $labels -}}
{{- if or (hasKey (include "pushgate.labels" (dict "root" $ "component" "any") | fromYaml) $label) (has $label (include "pushgate.controllersLabels" . | fromJsonArray)) -}}
{{- fail (printf "%s: the chart or Kubernetes sets %s itself, and would go by another value: leave it out" $name $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $annotation, $_ := $values.podAnnotations -}}
{{- if or (hasPrefix "helm.sh/" $annotation) (hasPrefix "checksum/" $annotation) -}}
{{- fail (printf "podAnnotations: the chart sets %s itself where it is needed: leave it out" $annotation) -}}
{{- end -}}
{{- end -}}
{{- $taken := list "/tmp" "/var/lib/pushgate" "/etc/pushgate/settings" -}}
{{- range $values.mounts -}}
{{- $path := clean .mountPath -}}
{{- if has $path $taken -}}
{{- fail (printf "mounts: something is mounted at %s already: choose another mountPath" $path) -}}
{{- end -}}
{{- $taken = append $taken $path -}}
{{- end -}}
{{- range $setting := list "amqpCaFile" "amqpCertFile" "amqpKeyFile" "signersFile" -}}
{{- with get $values.settings $setting -}}
{{- $file := . -}}
{{- $isMounted := false -}}
{{- range $values.mounts -}}
{{- if hasPrefix (printf "%s/" (clean .mountPath)) $file }}{{ $isMounted = true }}{{ end -}}
{{- end -}}
{{- if not $isMounted -}}
{{- fail (printf "settings.%s names %s, which is in no pod: add the Secret or ConfigMap that holds it to mounts" $setting $file) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $values.ingress.enabled (not $values.ingress.hosts) -}}
{{- fail "ingress.enabled without a host would take every host's webhooks: set ingress.hosts" -}}
{{- end -}}
{{- if and $values.httpRoute.enabled (not $values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.enabled needs the Gateway that it belongs to: set httpRoute.parentRefs" -}}
{{- end -}}
{{- end -}}
