{{/* A quantity of Kubernetes, such as 1.5Gi or 250m, as a number of units. */}}
{{- define "pushgate.quantity" -}}
{{- $units := dict "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $text := toString . -}}
{{- $unit := regexFind "[a-zA-Z]+$" $text -}}
{{- mulf (trimSuffix $unit $text | float64) (default 1 (get $units $unit)) -}}
{{- end -}}

{{/* Labels that controllers set on pods, as JSON. In a template, they are refused, or confuse the controller. */}}
{{- define "pushgate.controllersLabels" -}}
{{- list "pod-template-hash" "controller-revision-hash" "statefulset.kubernetes.io/pod-name" "apps.kubernetes.io/pod-index" "job-name" "controller-uid" "batch.kubernetes.io/job-name" "batch.kubernetes.io/controller-uid" "pushgate.dev/metrics" | toJson -}}
{{- end -}}

{{/* The values of an earlier version that have moved, with their new places. The schema lets them through to this chart's message. */}}
{{- define "pushgate.moved" -}}
env: pod.env
mounts: pod.mounts
nodeSelector: pod.nodeSelector
podAnnotations: pod.annotations
podLabels: pod.labels
preStopSeconds: pod.preStopSeconds
priorityClassName: pod.priorityClassName
terminationGracePeriodSeconds: pod.terminationGracePeriodSeconds
tolerations: pod.tolerations
topologySpread: pod.topologySpreadConstraints
user: pod.user
{{- end -}}

{{/* Checks that a schema cannot express. Each sentence says what is wrong and what to do. */}}
{{- define "pushgate.checks" -}}
{{- $values := .Values -}}
{{- range $old, $new := include "pushgate.moved" . | fromYaml -}}
{{- if hasKey $values $old -}}
{{- fail (printf "%s is now %s: move it there" $old $new) -}}
{{- end -}}
{{- end -}}
{{- $database := include "pushgate.secret" (dict "root" . "which" "databaseUrl") -}}
{{- if eq $values.mode "embedded" -}}
{{- if or (gt (int $values.web.replicas) 1) (gt (int $values.worker.replicas) 1) -}}
{{- fail "mode embedded keeps its state in SQLite, which only one pod can use: leave web.replicas and worker.replicas at 1, or set mode: distributed and name a PostgreSQL database in secrets.databaseUrl.existingSecret" -}}
{{- end -}}
{{- if or $values.web.autoscaling.enabled $values.worker.autoscaling.enabled -}}
{{- fail "mode embedded keeps its state in SQLite, which only one pod can use: switch autoscaling off, or set mode: distributed and name a PostgreSQL database in secrets.databaseUrl.existingSecret" -}}
{{- end -}}
{{- if $database -}}
{{- fail "a database is named, but mode embedded uses SQLite: set mode: distributed, or remove the database" -}}
{{- end -}}
{{- else -}}
{{- if not $database -}}
{{- fail "mode distributed needs PostgreSQL: name the Secret with its URL in secrets.databaseUrl.existingSecret, or set cloudnativepg.enabled" -}}
{{- end -}}
{{- if not (include "pushgate.secret" (dict "root" . "which" "secretKey")) -}}
{{- fail "mode distributed needs one secret key for all pods: name the Secret that holds it in secrets.secretKey.existingSecret" -}}
{{- end -}}
{{- if not $values.packages.url -}}
{{- fail "mode distributed needs an object store, because its pods share no folder: set packages.url to s3://, gs:// or az://" -}}
{{- end -}}
{{- end -}}
{{- $applied := or $values.connections.items $values.connections.sources -}}
{{- if and $applied (not (include "pushgate.secret" (dict "root" . "which" "adminToken"))) -}}
{{- fail "connections.items and sources are applied over the REST API: name the Secret with its token in secrets.adminToken.existingSecret" -}}
{{- end -}}
{{- if and $applied (not $values.connections.existingSecret) -}}
{{- fail "the webhook secrets of connections.items and sources are files: name the Secret that holds them in connections.existingSecret" -}}
{{- end -}}
{{- if and $values.externalSecret.enabled (not $values.externalSecret.storeRef.name) -}}
{{- fail "externalSecret.enabled needs the name of the store: set externalSecret.storeRef.name" -}}
{{- end -}}
{{- if and $values.rabbitmq.topology (not $values.rabbitmq.enabled) -}}
{{- fail "rabbitmq.topology describes the cluster of this release: set rabbitmq.enabled too, or settings.amqpDeclare: false if somebody else owns the topology" -}}
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
{{- fail (printf "worker.storage.size (%v) has no room for settings.mirrorBudget (%d bytes) and other files: raise worker.storage.size, or lower settings.mirrorBudget" $values.worker.storage.size (int64 $budget)) -}}
{{- end -}}
{{- $labelled := dict "commonLabels" $values.commonLabels "serviceMonitor.labels" $values.serviceMonitor.labels "prometheusRule.labels" $values.prometheusRule.labels "grafanaDashboard.labels" $values.grafanaDashboard.labels "cloudnativepg.podMonitor.labels" $values.cloudnativepg.podMonitor.labels -}}
{{- $annotated := dict "commonAnnotations" $values.commonAnnotations "serviceMonitor.annotations" $values.serviceMonitor.annotations "prometheusRule.annotations" $values.prometheusRule.annotations "grafanaDashboard.annotations" $values.grafanaDashboard.annotations -}}
{{- $accounts := dict -}}
{{- range $section := include "pushgate.sections" . | fromJsonArray -}}
{{- $of := include "pushgate.component" (dict "root" $ "section" $section) | fromJson -}}
{{- include "pushgate.checkPod" (merge (dict "root" $) $of) -}}
{{- if and $of.serviceAccount.create (hasKey $accounts $of.account) -}}
{{- fail (printf "the chart creates a ServiceAccount for each component, and two are named %s: give each its own name, or set serviceAccount.create: false" $of.account) -}}
{{- end -}}
{{- $_ := set $accounts $of.account true -}}
{{- end -}}
{{- range $section := list "" "web." "worker." "migration." "connections." "test." -}}
{{- $pod := (ternary $values (index $values (trimSuffix "." $section) | default dict) (empty $section)).pod -}}
{{- $_ := set $labelled (printf "%spod.labels" $section) (get $pod "labels" | default dict) -}}
{{- $_ := set $annotated (printf "%spod.annotations" $section) (get $pod "annotations" | default dict) -}}
{{- $_ := set $annotated (printf "%spod.workloadAnnotations" $section) (get $pod "workloadAnnotations" | default dict) -}}
{{- end -}}
{{- range $name, $labels := $labelled -}}
{{- range $label, $_ := $labels -}}
{{- if or (hasKey (include "pushgate.labels" (dict "root" $ "component" "any") | fromYaml) $label) (has $label (include "pushgate.controllersLabels" . | fromJsonArray)) -}}
{{- fail (printf "%s: the chart or Kubernetes sets %s itself, and another value would break it: remove it" $name $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name, $annotations := $annotated -}}
{{- range $annotation, $_ := $annotations -}}
{{- if or (hasPrefix "helm.sh/" $annotation) (hasPrefix "checksum/" $annotation) -}}
{{- fail (printf "%s: the chart sets %s itself if it is needed: remove it" $name $annotation) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with $values.networkPolicy -}}
{{- if and .enabled $values.serviceMonitor.enabled (eq $values.mode "distributed") (not .metrics.from) -}}
{{- fail "serviceMonitor.enabled, but networkPolicy lets nobody scrape workers: name the namespace of Prometheus in networkPolicy.metrics.from" -}}
{{- end -}}
{{- end -}}
{{- with $values.service -}}
{{- if and (eq .type "ClusterIP") (or .externalTrafficPolicy .nodePort) -}}
{{- fail "service.externalTrafficPolicy and service.nodePort are for traffic from outside: set service.type to NodePort or LoadBalancer" -}}
{{- end -}}
{{- if and (ne .type "LoadBalancer") (or .loadBalancerClass .loadBalancerSourceRanges) -}}
{{- fail "service.loadBalancerClass and service.loadBalancerSourceRanges need a load balancer: set service.type to LoadBalancer" -}}
{{- end -}}
{{- end -}}
{{- with $values.rabbitmq.tls -}}
{{- if and (or .caSecretName .disableNonTLSListeners) (not .secretName) -}}
{{- fail "rabbitmq.tls needs the certificate of the nodes: name its Secret in rabbitmq.tls.secretName" -}}
{{- end -}}
{{- end -}}
{{- with $values.cloudnativepg -}}
{{- if and .enabled .backup.enabled (eq .backup.method "plugin") (not .backup.objectStore) -}}
{{- fail "cloudnativepg.backup by the plugin needs an object store: name the ObjectStore in cloudnativepg.backup.objectStore" -}}
{{- end -}}
{{- end -}}
{{- if and $values.ingress.enabled (not $values.ingress.hosts) -}}
{{- fail "ingress.enabled without a host would accept webhooks for every host: set ingress.hosts" -}}
{{- end -}}
{{- if and $values.httpRoute.enabled (not $values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.enabled needs its parent Gateway: set httpRoute.parentRefs" -}}
{{- end -}}
{{- end -}}

{{/* Checks of the pod of a component. Takes a component with its root. */}}
{{- define "pushgate.checkPod" -}}
{{- $pod := .pod -}}
{{- if gt (add $pod.preStopSeconds 15) (int64 $pod.terminationGracePeriodSeconds) -}}
{{- fail "a terminating pod serves for preStopSeconds, and then needs up to 15 seconds more: raise pod.terminationGracePeriodSeconds" -}}
{{- end -}}
{{- $taken := list "/tmp" "/var/lib/pushgate" "/etc/pushgate/settings" "/etc/pushgate/connections" "/run/secrets/connections" -}}
{{- $folders := list -}}
{{- range concat $pod.mounts $pod.extraVolumeMounts -}}
{{- $path := clean .mountPath -}}
{{- if has $path $taken -}}
{{- fail (printf "pod.mounts: something is mounted at %s already: choose another mountPath" $path) -}}
{{- end -}}
{{- $taken = append $taken $path -}}
{{- $folders = append $folders $path -}}
{{- end -}}
{{- if has .section (list "web" "worker") -}}
{{- range $setting := list "amqpCaFile" "amqpCertFile" "amqpKeyFile" "signersFile" -}}
{{- with get $.root.Values.settings $setting -}}
{{- $file := . -}}
{{- $isMounted := false -}}
{{- range $folders -}}
{{- if or (eq . $file) (hasPrefix (printf "%s/" .) $file) }}{{ $isMounted = true }}{{ end -}}
{{- end -}}
{{- if not $isMounted -}}
{{- fail (printf "settings.%s names %s, which is in no pod: add the Secret or ConfigMap that contains it to pod.mounts" $setting $file) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
