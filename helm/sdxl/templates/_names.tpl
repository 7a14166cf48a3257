{{/* What objects are called, and the labels that hold them together. */}}

{{- define "sdxl.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 48 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 48 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* Name of a component's objects. Takes {root, name}. */}}
{{- define "sdxl.name" -}}
{{- printf "%s-%s" (include "sdxl.fullname" .root) .name -}}
{{- end }}

{{/* What a selector finds a component's pods by; it never changes. Takes {root, name}. */}}
{{- define "sdxl.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .name }}
{{- end }}

{{- define "sdxl.labels" -}}
{{ include "sdxl.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: sdxl
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* The head of an object of a component. Takes {root, name}. */}}
{{- define "sdxl.metadata" -}}
name: {{ include "sdxl.name" . }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "sdxl.labels" . | nindent 2 }}
{{- end }}

{{/* Reference of an image. Takes {root, name, image, variant}. */}}
{{- define "sdxl.image" -}}
{{- $common := .root.Values.image -}}
{{- $repository := default (printf "%s/sdxl-%s" (trimSuffix "/" $common.registry) .name) .image.repository -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $repository .image.digest -}}
{{- else -}}
{{- $tag := default (default .root.Chart.AppVersion $common.tag) .image.tag -}}
{{- printf "%s:%s" $repository (ternary $tag (printf "%s-%s" $tag .variant) (or (empty .variant) (not (empty .image.tag)))) -}}
{{- end -}}
{{- end }}
