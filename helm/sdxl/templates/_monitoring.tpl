{{/* The head of an object that is found by its labels, which go before the chart's own of the same name. Takes {root, name,
labels}. */}}
{{- define "sdxl.monitoring" -}}
{{- $head := include "sdxl.metadata" . | fromYaml -}}
{{- toYaml (set $head "labels" (merge (dict) (default dict .labels) $head.labels)) -}}
{{- end }}

{{/* The port of each pod at which it is asked without TLS. Takes the root. */}}
{{- define "sdxl.metricsPort" -}}
{{- ternary "health" "grpc" .Values.tls.enabled -}}
{{- end }}

{{/* The groups of files/alerts.yaml, as a JSON array: with values in place of words in capitals, without the alerts that are not
wanted, each with the place in the runbook. */}}
{{- define "sdxl.alerts" -}}
{{- $alerts := .Values.monitoring.alerts -}}
{{- $text := .Files.Get "files/alerts.yaml" -}}
{{- range $name, $value := merge (dict "window" $alerts.window "for" $alerts.for) $alerts.thresholds -}}
{{- $text = regexReplaceAllLiteral (printf "\\b%s\\b" ($name | snakecase | upper)) $text (toString $value) -}}
{{- end -}}
{{- $groups := list -}}
{{- range $group := (fromYaml $text).groups -}}
{{- $rules := list -}}
{{- range $group.rules -}}
{{- if not (has .alert $alerts.without) -}}
{{- $place := printf "%s#%s" (default "docs/operations.md" $alerts.runbook) (lower .alert) -}}
{{- $_ := set .annotations (ternary "runbook_url" "runbook" (not (empty $alerts.runbook))) $place -}}
{{- $rules = append $rules . -}}
{{- end -}}
{{- end -}}
{{- with $rules -}}
{{- $groups = append $groups (dict "name" $group.name "rules" .) -}}
{{- end -}}
{{- end -}}
{{- toJson $groups -}}
{{- end }}
