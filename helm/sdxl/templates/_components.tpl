{{/*
What the release is made of, as a JSON array: the coordinator and the stages that are enabled, each as {name, key, port,
isStage, values, pool}. A stage's values are stageDefaults with its own over them.
*/}}
{{- define "sdxl.components" -}}
{{- $coordinator := dict "name" "coordinator" "key" "coordinator" "port" 50051 "isStage" false "values" .Values.coordinator "pool" dict -}}
{{- $all := list $coordinator -}}
{{- range include "sdxl.stages" . | fromJsonArray -}}
{{- $given := index $.Values.stages .key | default dict -}}
{{- $values := include "sdxl.over" (dict "below" $.Values.stageDefaults "above" $given) | fromJson -}}
{{- $pool := get $.Values.gpuPools $values.gpuPool | default dict -}}
{{- if $values.enabled -}}
{{- $all = append $all (dict "name" .name "key" .key "port" .port "isStage" true "values" $values "pool" $pool) -}}
{{- end -}}
{{- end -}}
{{- toJson $all -}}
{{- end }}

{{/* The stages there can be, and the ports that their binaries have by default. */}}
{{- define "sdxl.stages" -}}
[{"key": "textEncoder", "name": "text-encoder", "port": 50061}, {"key": "baseUnet", "name": "base-unet", "port": 50062},
 {"key": "refiner", "name": "refiner", "port": 50063}, {"key": "vae", "name": "vae", "port": 50064}]
{{- end }}

{{/* Two maps, one over the other, as JSON. Unlike sprig's mergeOverwrite it lets false, 0 and "" win. Takes {below, above}. */}}
{{- define "sdxl.over" -}}
{{- $merged := deepCopy .below -}}
{{- range $key, $value := .above -}}
{{- if and (kindIs "map" $value) (kindIs "map" (get $merged $key)) -}}
{{- $_ := set $merged $key (include "sdxl.over" (dict "below" (get $merged $key) "above" $value) | fromJson) -}}
{{- else if not (kindIs "invalid" $value) -}}
{{- $_ := set $merged $key $value -}}
{{- end -}}
{{- end -}}
{{- toJson $merged -}}
{{- end }}

{{/* Where the coordinator finds a stage's replicas. Takes {root, name, port}. */}}
{{- define "sdxl.replicas" -}}
{{- $service := include "sdxl.name" . -}}
{{- if eq .root.Values.discovery "kubernetes" -}}
{{- printf "kubernetes:%s:%v" $service .port -}}
{{- else -}}
{{- printf "dns:%s.%s.svc:%v" $service .root.Release.Namespace .port -}}
{{- end -}}
{{- end }}

{{/* Which of weights' kinds are given, as a JSON array. */}}
{{- define "sdxl.weights" -}}
{{- $w := .Values.weights -}}
{{- $kinds := list -}}
{{- if $w.pvc.claimName }}{{ $kinds = append $kinds "pvc.claimName" }}{{ end -}}
{{- if $w.hostPath.path }}{{ $kinds = append $kinds "hostPath.path" }}{{ end -}}
{{- if $w.image.reference }}{{ $kinds = append $kinds "image.reference" }}{{ end -}}
{{- if $w.download.files }}{{ $kinds = append $kinds "download.files" }}{{ end -}}
{{- toJson $kinds -}}
{{- end }}

{{/* Name of the secret with a component's certificate. Takes {root, isStage}. */}}
{{- define "sdxl.tlsSecret" -}}
{{- $tls := .root.Values.tls -}}
{{- if $tls.certManager.issuerRef.name -}}
{{- printf "%s-%s-tls" (include "sdxl.fullname" .root) (ternary "stage" "coordinator" .isStage) -}}
{{- else -}}
{{- ternary $tls.stageSecret $tls.coordinatorSecret .isStage -}}
{{- end -}}
{{- end }}
