{{/* The objects of a component. Each takes a component with root; what a component does not have comes out empty. */}}

{{- define "sdxl.ServiceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "sdxl.metadata" . | nindent 2 }}
  {{- with .values.serviceAccountAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end }}

{{/* A stage's has no address of its own: the coordinator chooses among the pods. */}}
{{- define "sdxl.Service" -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "sdxl.metadata" . | nindent 2 }}
  {{- with dig "service" "annotations" nil .values }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- if .isStage }}
  clusterIP: None
  {{- else }}
  type: {{ .values.service.type }}
  {{- with .values.service.trafficDistribution }}
  trafficDistribution: {{ . }}
  {{- end }}
  {{- end }}
  selector:
    {{- include "sdxl.selector" . | nindent 4 }}
  ports:
    - {name: grpc, port: {{ .port }}, targetPort: grpc{{ if not .root.Values.tls.enabled }}, appProtocol: kubernetes.io/h2c{{ end }}}
{{- end }}

{{- define "sdxl.Deployment" -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "sdxl.metadata" . | nindent 2 }}
spec:
  {{- if eq .values.autoscaling.kind "none" }}
  replicas: {{ .values.replicas }}
  {{- end }}
  revisionHistoryLimit: 3
  # Above what a start may take, or a rollout of large checkpoints would count as failed.
  progressDeadlineSeconds: {{ add .values.startupSeconds 300 }}
  strategy:
    type: RollingUpdate
    rollingUpdate:
      {{- toYaml .values.rollout | nindent 6 }}
  selector:
    matchLabels:
      {{- include "sdxl.selector" . | nindent 6 }}
  template:
    {{- include "sdxl.pod" . | nindent 4 }}
{{- end }}

{{- define "sdxl.PodDisruptionBudget" -}}
{{- if .values.podDisruptionBudget.enabled -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "sdxl.metadata" . | nindent 2 }}
spec:
  maxUnavailable: {{ .values.podDisruptionBudget.maxUnavailable }}
  # A pod that is not ready serves nobody, so it does not hold a node back.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "sdxl.selector" . | nindent 6 }}
{{- end }}
{{- end }}

{{- define "sdxl.NetworkPolicy" -}}
{{- $v := .root.Values -}}
{{- $root := .root -}}
{{- if $v.networkPolicy.enabled -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "sdxl.metadata" . | nindent 2 }}
spec:
  podSelector:
    matchLabels:
      {{- include "sdxl.selector" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
  ingress:
    {{- if .isStage }}
    - from:
        - podSelector:
            matchLabels:
              {{- include "sdxl.selector" (dict "root" $root "name" "coordinator") | nindent 14 }}
      ports: [{port: grpc, protocol: TCP}]
    {{- else }}
    - ports: [{port: grpc, protocol: TCP}]
      {{- with $v.networkPolicy.clients }}
      from:
        {{- toYaml . | nindent 8 }}
        - namespaceSelector:
            matchLabels:
              {{- toYaml $v.networkPolicy.kedaNamespace | nindent 14 }}
        # helm test
        - podSelector:
            matchLabels:
              {{- include "sdxl.selector" (dict "root" $root "name" "test") | nindent 14 }}
      {{- end }}
    {{- end }}
    {{- if $v.monitoring.podMonitor.enabled }}
    - from:
        - namespaceSelector:
            matchLabels:
              {{- toYaml $v.networkPolicy.prometheusNamespace | nindent 14 }}
      ports: [{port: {{ include "sdxl.metricsPort" $root }}, protocol: TCP}]
    {{- end }}
  egress:
    - ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
    {{- with $v.telemetry.otlpEndpoint }}
    - ports: [{port: {{ include "sdxl.portOf" . }}, protocol: TCP}]
    {{- end }}
    {{- if .isStage }}
    {{- if $v.weights.download.files }}
    - ports: [{port: 443, protocol: TCP}, {port: 80, protocol: TCP}]
    {{- end }}
    {{- else }}
    {{- range include "sdxl.components" $root | fromJsonArray }}
    {{- if .isStage }}
    - to:
        - podSelector:
            matchLabels:
              {{- include "sdxl.selector" (dict "root" $root "name" .name) | nindent 14 }}
      ports: [{port: grpc, protocol: TCP}]
    {{- end }}
    {{- end }}
    {{- if $v.redis.inChart.enabled }}
    - to:
        - podSelector:
            matchLabels:
              {{- include "sdxl.selector" (dict "root" $root "name" "redis") | nindent 14 }}
      ports: [{port: redis, protocol: TCP}]
    {{- else if or $v.redis.external.url $v.redis.external.secret }}
    - ports: [{port: {{ $v.redis.external.port }}, protocol: TCP}]
    {{- end }}
    {{- if eq $v.discovery "kubernetes" }}
    - ports:
        {{- range $v.networkPolicy.apiServerPorts }}
        - {port: {{ . }}, protocol: TCP}
        {{- end }}
    {{- end }}
    {{- end }}
{{- end }}
{{- end }}

{{/* The port of a URL with a port, or of http and https. */}}
{{- define "sdxl.portOf" -}}
{{- $port := regexFind ":[0-9]+(/|$)" . | trimPrefix ":" | trimSuffix "/" -}}
{{- default (ternary 443 80 (hasPrefix "https:" .)) $port -}}
{{- end }}

{{- define "sdxl.Autoscaler" -}}
{{- $scaling := .values.autoscaling -}}
{{- if ne $scaling.kind "none" -}}
{{- include (printf "sdxl.Autoscaler.%s" $scaling.kind) . -}}
{{- end -}}
{{- end }}

{{- define "sdxl.Autoscaler.hpa" -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  {{- include "sdxl.metadata" . | nindent 2 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ include "sdxl.name" . }}}
  minReplicas: {{ .values.autoscaling.minReplicas }}
  maxReplicas: {{ .values.autoscaling.maxReplicas }}
  metrics:
    {{- with .values.autoscaling.metrics }}
    {{- toYaml . | nindent 4 }}
    {{- else }}
    - {type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 70}}}
    {{- end }}
  {{- with .values.autoscaling.behavior }}
  behavior:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* KEDA asks the coordinator, which knows what each stage has to do and how fast it does it. */}}
{{- define "sdxl.Autoscaler.keda" -}}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  {{- include "sdxl.metadata" . | nindent 2 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ include "sdxl.name" . }}}
  minReplicaCount: {{ .values.autoscaling.minReplicas }}
  maxReplicaCount: {{ .values.autoscaling.maxReplicas }}
  pollingInterval: 10
  # Without figures the stage stays as large as it is.
  fallback: {failureThreshold: 3, replicas: {{ .values.autoscaling.minReplicas }}, behavior: currentReplicasIfHigher}
  {{- with .values.autoscaling.behavior }}
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        {{- toYaml . | nindent 8 }}
  {{- end }}
  triggers:
    - type: external-push
      metadata:
        scalerAddress: {{ include "sdxl.name" (dict "root" .root "name" "coordinator") }}.{{ .root.Release.Namespace }}.svc:50051
        stage: {{ .name }}
        targetSeconds: {{ .values.autoscaling.targetSeconds | quote }}
        {{- if .root.Values.tls.enabled }}
        enableTLS: "true"
      authenticationRef: {name: {{ include "sdxl.name" (dict "root" .root "name" "scaler") }}}
        {{- end }}
{{- end }}
