{{/* The sections of values whose component this release has, as JSON. Takes the root. */}}
{{- define "pushgate.sections" -}}
{{- $sections := list "worker" "test" -}}
{{- if include "pushgate.distributed" . }}{{ $sections = append $sections "web" }}{{ end -}}
{{- if include "pushgate.migrates" . }}{{ $sections = append $sections "migration" }}{{ end -}}
{{- if include "pushgate.applies" . }}{{ $sections = append $sections "connections" }}{{ end -}}
{{ toJson $sections }}
{{- end -}}

{{/* Whether a Job upgrades the schema, and whether one applies connections and sources. */}}
{{- define "pushgate.migrates" -}}
{{- if and (include "pushgate.distributed" .) (not (include "pushgate.databaseIsMade" .)) }}true{{ end -}}
{{- end -}}
{{- define "pushgate.applies" -}}
{{- if or .Values.connections.items .Values.connections.sources }}true{{ end -}}
{{- end -}}

{{/*
A component, as JSON: {section, component, name, account, resources} and its pod, serviceAccount and podDisruptionBudget, which
are the shared values overridden by those of its section. Takes {root, section}.
*/}}
{{- define "pushgate.component" -}}
{{- $values := .root.Values -}}
{{- $own := index $values .section -}}
{{- $full := include "pushgate.fullname" .root -}}
{{- $result := dict "section" .section "resources" $own.resources "component" .section "name" (printf "%s-%s" $full .section) -}}
{{- if eq .section "worker" -}}
{{- $_ := set $result "component" (include "pushgate.fetcher" .root) -}}
{{- $_ := set $result "name" (include "pushgate.fetcherName" .root) -}}
{{- else if eq .section "migration" -}}
{{- $_ := set $result "name" (printf "%s-migrate" $full) -}}
{{- end -}}
{{- range $key := list "pod" "serviceAccount" "podDisruptionBudget" -}}
{{- $joined := dict -}}
{{- range $name, $shared := index $values $key }}{{ $_ := set $joined $name $shared }}{{ end -}}
{{- /* With a sidecar that runs on, a Job or test never ends, and an upgrade waits for it. */ -}}
{{- if not (has $.section (list "web" "worker")) }}{{ $joined = omit $joined "extraContainers" }}{{ end -}}
{{- range $name, $value := get $own $key | default dict -}}
{{- $shared := get $joined $name -}}
{{- if and (kindIs "map" $value) (kindIs "map" $shared) -}}
{{- $over := $value -}}
{{- $value = dict -}}
{{- range $map := list $shared $over }}{{ range $inner, $one := $map }}{{ $_ := set $value $inner $one }}{{ end }}{{ end -}}
{{- end -}}
{{- $_ := set $joined $name $value -}}
{{- end -}}
{{- $_ := set $result $key $joined -}}
{{- end -}}
{{- $account := get (get $own "serviceAccount" | default dict) "name" -}}
{{- if not $account -}}
{{- $suffix := trimPrefix $full $result.name -}}
{{- $shared := $values.serviceAccount.name -}}
{{- $account = ternary (printf "%s%s" (default $full $shared) $suffix) (default "default" $shared) $result.serviceAccount.create -}}
{{- end -}}
{{ set $result "account" $account | toJson }}
{{- end -}}
