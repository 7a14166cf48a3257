{{/* The pod of the coordinator and of every stage. Takes a component with root. */}}
{{- define "sdxl.pod" -}}
{{- $v := .values -}}
{{- $root := .root -}}
metadata:
  labels:
    {{- include "sdxl.selector" . | nindent 4 }}
    {{- with $v.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: {{ .name }}
    {{- if and .isStage $root.Values.weights.download.files }}
    checksum/weights: {{ toJson $root.Values.weights.download.files | sha256sum }}
    {{- end }}
    {{- with $v.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "sdxl.name" . }}
  automountServiceAccountToken: {{ and (not .isStage) (eq $root.Values.discovery "kubernetes") }}
  # The variables that Kubernetes makes of Services, as SDXL_VAE_PORT, could be taken for the binaries' own.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ add $v.preStopSeconds $v.drainSeconds 10 }}
  securityContext:
    {{- include "sdxl.podSecurity" . | nindent 4 }}
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with default .pool.priorityClassName $v.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .pool.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with default .pool.nodeSelector $v.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with default .pool.tolerations $v.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .pool.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with include "sdxl.spread" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- if and .isStage $root.Values.weights.download.files }}
  initContainers:
    {{- include "sdxl.download" . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ .name }}
      image: {{ include "sdxl.image" (dict "root" $root "name" .name "image" $v.image "variant" .pool.imageVariant) }}
      imagePullPolicy: {{ default $root.Values.image.pullPolicy $v.image.pullPolicy }}
      command: [sdxl-{{ .name }}]
      args:
        {{- include (ternary "sdxl.stageArgs" "sdxl.coordinatorArgs" .isStage) . | nindent 8 }}
        {{- with $v.extraArgs }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with include "sdxl.env" . | trim }}
      env:
        {{- . | nindent 8 }}
      {{- end }}
      ports:
        - {name: grpc, containerPort: {{ .port }}}
        {{- if $root.Values.tls.enabled }}
        - {name: health, containerPort: {{ include "sdxl.healthPort" . }}}
        {{- end }}
      {{- include "sdxl.probes" . | nindent 6 }}
      lifecycle:
        # For as long as it takes that the last coordinator, or client, has seen it leave.
        preStop: {sleep: {seconds: {{ $v.preStopSeconds }}}}
      resources:
        {{- include "sdxl.resources" (dict "given" $v.resources "pool" (default dict .pool.resources)) | nindent 8 }}
      securityContext:
        {{- include "sdxl.containerSecurity" . | nindent 8 }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        - {name: log, mountPath: /etc/sdxl/log, readOnly: true}
        {{- if .isStage }}
        - {name: weights, mountPath: /weights, readOnly: true}
        {{- end }}
        {{- if $root.Values.tls.enabled }}
        - {name: tls, mountPath: /etc/sdxl/tls, readOnly: true}
        {{- end }}
        {{- if and (not .isStage) $root.Values.auth.secret }}
        - {name: auth, mountPath: /etc/sdxl/auth, readOnly: true}
        {{- end }}
        {{- with $v.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    {{- include "sdxl.volumes" . | nindent 4 }}
{{- end }}

{{- define "sdxl.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "sdxl.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* A container's resources with its pool's devices, which have to be asked for and limited alike. Takes {given, pool}. */}}
{{- define "sdxl.resources" -}}
{{- $requests := merge (dict) .pool (default dict .given.requests) -}}
{{- $limits := merge (dict) .pool (default dict .given.limits) -}}
requests:
  {{- toYaml $requests | nindent 2 }}
limits:
  {{- toYaml $limits | nindent 2 }}
{{- end }}

{{- define "sdxl.spread" -}}
{{- $keys := dict "zone" "topology.kubernetes.io/zone" "host" "kubernetes.io/hostname" -}}
{{- $constraints := list -}}
{{- range $word, $key := $keys -}}
{{- with get $.values.topologySpread $word -}}
{{- $constraints = append $constraints (dict "maxSkew" 1 "topologyKey" $key "whenUnsatisfiable" . "matchLabelKeys" (list "pod-template-hash") "labelSelector" (dict "matchLabels" (include "sdxl.selector" $ | fromYaml))) -}}
{{- end -}}
{{- end -}}
{{- with $constraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The kubelet's own client speaks gRPC without TLS, so health is served once more without it where TLS is on. */}}
{{- define "sdxl.healthPort" -}}
{{- add .port 1000 -}}
{{- end }}

{{- define "sdxl.probes" -}}
{{- $port := ternary (include "sdxl.healthPort" .) (toString .port) .root.Values.tls.enabled -}}
startupProbe:
  {{- if .isStage }}
  grpc: {port: {{ $port }}}
  {{- else }}
  # It serves once each stage has a replica, which may be much later than it has started.
  tcpSocket: {port: {{ $port }}}
  {{- end }}
  periodSeconds: 5
  timeoutSeconds: 2
  failureThreshold: {{ max 1 (div (add .values.startupSeconds 4) 5) }}
readinessProbe:
  grpc: {port: {{ $port }}}
  periodSeconds: 5
  timeoutSeconds: 2
  failureThreshold: 2
livenessProbe:
  {{- if .isStage }}
  grpc: {port: {{ $port }}}
  {{- else }}
  # Its health is the cluster's: a restart would not bring a stage back.
  tcpSocket: {port: {{ $port }}}
  {{- end }}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end }}

{{- define "sdxl.download" -}}
{{- $v := .root.Values -}}
- name: weights
  image: {{ $v.weights.download.image }}
  imagePullPolicy: {{ $v.image.pullPolicy }}
  command: [sh, /download/download.sh, /download/files, /weights{{ if $v.weights.download.secret }}, /credentials/config{{ end }}]
  resources:
    requests: {cpu: 100m, memory: 64Mi, ephemeral-storage: {{ $v.weights.download.sizeLimit }}}
    limits: {memory: 256Mi, ephemeral-storage: {{ $v.weights.download.sizeLimit }}}
  securityContext:
    {{- include "sdxl.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: weights, mountPath: /weights}
    - {name: download, mountPath: /download, readOnly: true}
    {{- if $v.weights.download.secret }}
    - {name: credentials, mountPath: /credentials, readOnly: true}
    {{- end }}
{{- end }}

{{- define "sdxl.volumes" -}}
{{- $w := .root.Values.weights -}}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
- name: log
  configMap: {name: {{ include "sdxl.fullname" .root }}-log}
{{- if .isStage }}
- name: weights
  {{- if $w.pvc.claimName }}
  persistentVolumeClaim: {claimName: {{ $w.pvc.claimName }}, readOnly: true}
  {{- else if $w.hostPath.path }}
  hostPath: {path: {{ $w.hostPath.path }}, type: Directory}
  {{- else if $w.image.reference }}
  image: {reference: {{ $w.image.reference }}, pullPolicy: {{ $w.image.pullPolicy }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ $w.download.sizeLimit }}}
- name: download
  configMap: {name: {{ include "sdxl.fullname" .root }}-download}
  {{- if $w.download.secret }}
- name: credentials
  secret: {secretName: {{ $w.download.secret }}}
  {{- end }}
  {{- end }}
{{- end }}
{{- if .root.Values.tls.enabled }}
- name: tls
  secret: {secretName: {{ include "sdxl.tlsSecret" . }}}
{{- end }}
{{- if and (not .isStage) .root.Values.auth.secret }}
- name: auth
  secret: {secretName: {{ .root.Values.auth.secret }}}
{{- end }}
{{- with .values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
