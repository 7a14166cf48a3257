{{/* What the schema cannot say, because it is about several values. All that is wrong is told at once. */}}
{{- define "sdxl.validate" -}}
{{- $wrong := list -}}

{{- if not .Values.image.registry -}}
{{- $wrong = append $wrong "image.registry: where the images are has to be given; none are published" -}}
{{- end -}}

{{- $weights := include "sdxl.weights" . | fromJsonArray -}}
{{- if ne (len $weights) 1 -}}
{{- $wrong = append $wrong (printf "weights: one of pvc.claimName, hostPath.path, image.reference and download.files has to be given, not %s" (ternary "none" (join " and " $weights) (empty $weights))) -}}
{{- end -}}

{{- range include "sdxl.components" . | fromJsonArray -}}
{{- $at := ternary (printf "stages.%s" .key) .key .isStage -}}
{{- if and .isStage (not (hasKey $.Values.gpuPools .values.gpuPool)) -}}
{{- $wrong = append $wrong (printf "%s.gpuPool: there is no pool %q in gpuPools, which has %s" $at .values.gpuPool (keys $.Values.gpuPools | sortAlpha | join ", ")) -}}
{{- end -}}
{{- with .values.autoscaling -}}
{{- if and (ne .kind "none") (gt (int .minReplicas) (int .maxReplicas)) -}}
{{- $wrong = append $wrong (printf "%s.autoscaling: minReplicas is %v and maxReplicas %v" $at .minReplicas .maxReplicas) -}}
{{- end -}}
{{- end -}}
{{- with .values.rollout -}}
{{- if and (eq (toString .maxSurge) "0") (eq (toString .maxUnavailable) "0") -}}
{{- $wrong = append $wrong (printf "%s.rollout: maxSurge and maxUnavailable cannot both be 0" $at) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- range $key := list "textEncoder" "baseUnet" "vae" -}}
{{- $given := index $.Values.stages $key | default dict -}}
{{- if not (ternary $given.enabled $.Values.stageDefaults.enabled (hasKey $given "enabled")) -}}
{{- $wrong = append $wrong (printf "stages.%s.enabled: every request needs it; only the refiner may be left out" $key) -}}
{{- end -}}
{{- end -}}

{{- $external := .Values.redis.external -}}
{{- if and $external.url $external.secret -}}
{{- $wrong = append $wrong "redis.external: url and secret are both given; one of them has the address" -}}
{{- end -}}
{{- if and .Values.redis.inChart.enabled (or $external.url $external.secret) -}}
{{- $wrong = append $wrong (printf "redis: both inChart.enabled and external.%s are given; there is one Redis or none" (ternary "url" "secret" (not (empty $external.url)))) -}}
{{- end -}}

{{- if .Values.tls.enabled -}}
{{- $made := .Values.tls.certManager.issuerRef.name -}}
{{- $given := and .Values.tls.coordinatorSecret .Values.tls.stageSecret -}}
{{- if and $made (or .Values.tls.coordinatorSecret .Values.tls.stageSecret) -}}
{{- $wrong = append $wrong "tls: certManager.issuerRef.name and secrets are both given; certificates come from one of them" -}}
{{- else if not (or $made $given) -}}
{{- $wrong = append $wrong "tls: certManager.issuerRef.name, or coordinatorSecret and stageSecret, have to be given; enabled=false does without certificates" -}}
{{- end -}}
{{- end -}}

{{- if and .Values.ingress.enabled (not .Values.ingress.host) -}}
{{- $wrong = append $wrong "ingress.host: has to be given" -}}
{{- end -}}
{{- if and .Values.grpcRoute.enabled (not .Values.grpcRoute.parentRefs) -}}
{{- $wrong = append $wrong "grpcRoute.parentRefs: at least one Gateway has to be given" -}}
{{- end -}}

{{- with $wrong -}}
{{- fail (printf "wrong values:\n  %s\n" (join "\n  " .)) -}}
{{- end -}}
{{- end }}
