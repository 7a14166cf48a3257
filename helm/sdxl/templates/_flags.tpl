{{/* What the binaries are told: flags where it is plain, variables where it comes from elsewhere. */}}

{{- define "sdxl.serverArgs" -}}
{{- $v := .root.Values -}}
- --listen={{ $v.listenHost }}:{{ .port }}
- --drain-timeout={{ .values.drainSeconds }}
- --log-from=/etc/sdxl/log/filter
- --log-format={{ $v.telemetry.logFormat }}
{{- if $v.tls.enabled }}
- --tls-cert=/etc/sdxl/tls/tls.crt
- --tls-key=/etc/sdxl/tls/tls.key
{{- if .isStage }}
- --tls-client-ca=/etc/sdxl/tls/ca.crt
- --tls-client-name={{ include "sdxl.name" (dict "root" .root "name" "coordinator") }}.{{ .root.Release.Namespace }}.svc
{{- end }}
- --health-listen={{ $v.listenHost }}:{{ include "sdxl.healthPort" . }}
{{- end }}
{{- end }}

{{- define "sdxl.stageArgs" -}}
{{- $w := .root.Values.weights -}}
{{ include "sdxl.serverArgs" . }}
{{- if eq .key "textEncoder" }}
- --base=/weights/{{ $w.base }}
{{- if include "sdxl.hasRefiner" .root }}
- --refiner=/weights/{{ $w.refiner }}
{{- end }}
{{- else }}
- --model=/weights/{{ ternary $w.refiner $w.base (eq .key "refiner") }}
{{- end }}
{{- with .pool.device }}
- --device={{ . }}
{{- end }}
{{- with .values.dtype }}
- --dtype={{ . }}
{{- end }}
{{- with .values.threads }}
- --threads={{ . }}
{{- end }}
{{- end }}

{{- define "sdxl.coordinatorArgs" -}}
{{ include "sdxl.serverArgs" . }}
{{- $root := .root }}
{{- range include "sdxl.components" .root | fromJsonArray }}
{{- if .isStage }}
- --{{ .name }}={{ include "sdxl.replicas" (merge (dict "root" $root) .) }}
{{- end }}
{{- end }}
{{- if .root.Values.tls.enabled }}
- --stage-tls-ca=/etc/sdxl/tls/ca.crt
- --stage-tls-cert=/etc/sdxl/tls/tls.crt
- --stage-tls-key=/etc/sdxl/tls/tls.key
- --stage-tls-name={{ include "sdxl.name" (dict "root" .root "name" "base-unet") }}.{{ .root.Release.Namespace }}.svc
{{- end }}
{{- if .root.Values.auth.secret }}
- --keys=/etc/sdxl/auth/keys
{{- else }}
- --allow-anonymous
{{- end }}
{{- end }}

{{- define "sdxl.hasRefiner" -}}
{{- range include "sdxl.components" . | fromJsonArray }}{{ if eq .key "refiner" }}yes{{ end }}{{ end -}}
{{- end }}

{{- define "sdxl.env" -}}
{{- $v := .root.Values -}}
{{- if not .isStage }}
{{- if eq $v.discovery "kubernetes" }}
# From Kubernetes 1.35 on a pod has its node's labels of zone and region; before that it is empty, and no zone is preferred.
- name: SDXL_ZONE
  valueFrom: {fieldRef: {fieldPath: "metadata.labels['topology.kubernetes.io/zone']"}}
{{- end }}
{{- if $v.redis.external.url }}
- name: SDXL_REDIS
  value: {{ $v.redis.external.url | quote }}
{{- else if $v.redis.external.secret }}
- name: SDXL_REDIS
  valueFrom: {secretKeyRef: {name: {{ $v.redis.external.secret }}, key: {{ $v.redis.external.secretKey }}}}
{{- else if $v.redis.inChart.enabled }}
- name: SDXL_REDIS
  valueFrom: {secretKeyRef: {name: {{ include "sdxl.name" (dict "root" .root "name" "redis") }}, key: url}}
{{- end }}
{{- end }}
{{- with $v.telemetry.otlpEndpoint }}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: k8s.pod.name=$(POD_NAME)
{{- end }}
{{- with .values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}
