{{- define "gateway.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- /* Names of pods and volumes add to it, so it is shorter than the 63 characters that a label may have. */}}
{{- define "gateway.fullname" -}}
{{- $name := include "gateway.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 45 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 45 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 45 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "gateway.instanceLabels" -}}
app.kubernetes.io/name: {{ include "gateway.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "gateway.selectorLabels" -}}
{{ include "gateway.instanceLabels" . }}
app.kubernetes.io/component: gateway
{{- end }}

{{- /* Of every object; the component is added where there is one. */}}
{{- define "gateway.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "gateway.instanceLabels" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | replace "+" "_" | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- /* Of pods: the chart's own version is not in them, so that a chart that changes nothing restarts nothing. */}}
{{- define "gateway.podLabels" -}}
{{ include "gateway.instanceLabels" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | replace "+" "_" | trunc 63 | quote }}
{{- end }}

{{- define "gateway.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- define "gateway.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "gateway.fullname" .) }}
{{- else }}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{- define "gateway.scheme" -}}
{{- empty .Values.tls.existingSecret | ternary "HTTP" "HTTPS" }}
{{- end }}

{{- /* A Twisted endpoint; the colons of an IPv6 address need a backslash each. */}}
{{- define "gateway.listen" -}}
{{- $interface := .Values.service.ipv6 | ternary ":interface=\\:\\:" "" }}
{{- $port := int .Values.service.containerPort }}
{{- if .Values.tls.existingSecret }}
{{- printf "ssl:%d:privateKey=/etc/vllm-passthrough/tls/tls.key:certKey=/etc/vllm-passthrough/tls/tls.crt%s" $port $interface }}
{{- else }}
{{- printf "tcp:%d%s" $port $interface }}
{{- end }}
{{- end }}

{{- define "gateway.config" -}}
{{- $listen := dict "passthrough" (dict "listen" (list (include "gateway.listen" .))) }}
{{- toYaml (mergeOverwrite (deepCopy .Values.config) $listen) }}
{{- end }}

{{- /* How long Kubernetes waits for the end of a pod, in seconds. */}}
{{- define "gateway.gracePeriod" -}}
{{- $own := .Values.config.passthrough }}
{{- add (ceil $own.drain_delay) (ceil $own.drain_timeout) .Values.shutdownSeconds }}
{{- end }}

{{- /* The variables that Secrets give, by their names, each with its Secret and key. */}}
{{- define "gateway.secrets" -}}
{{- $secrets := deepCopy .Values.secrets.environment }}
{{- $_ := set $secrets "LITELLM_MASTER_KEY" .Values.secrets.masterKey }}
{{- if .Values.secrets.saltKey.existingSecret }}
{{- $_ := set $secrets "LITELLM_SALT_KEY" .Values.secrets.saltKey }}
{{- end }}
{{- if eq .Values.database.type "postgresql" }}
{{- $_ := set $secrets "DATABASE_URL" (pick .Values.database "existingSecret" "key") }}
{{- end }}
{{- if .Values.redis.existingSecret }}
{{- $_ := set $secrets "VLLM_PASSTHROUGH_REDIS_URL" .Values.redis }}
{{- end }}
{{- toYaml $secrets }}
{{- end }}

{{- /* Secrets are files: a reload reads them again, and no program that the gateway starts inherits them. */}}
{{- define "gateway.environment" -}}
{{- range $name, $from := include "gateway.secrets" . | fromYaml }}
- name: {{ $name }}_FILE
  value: /etc/vllm-passthrough/secrets/{{ $name }}
{{- end }}
{{- range $name, $value := .Values.environment }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{- /* What the gateway and `helm test` read: configuration, secrets, certificate. */}}
{{- define "gateway.files" -}}
- name: config
  mountPath: /etc/vllm-passthrough/config
  readOnly: true
- name: secrets
  mountPath: /etc/vllm-passthrough/secrets
  readOnly: true
{{- if .Values.tls.existingSecret }}
- name: tls
  mountPath: /etc/vllm-passthrough/tls
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "gateway.fileVolumes" -}}
- name: config
  configMap:
    name: {{ include "gateway.fullname" . }}
- name: secrets
  projected:
    # 0440: for the group of podSecurityContext.fsGroup
    defaultMode: 288
    sources:
      {{- range $name, $from := include "gateway.secrets" . | fromYaml }}
      - secret:
          name: {{ $from.existingSecret }}
          items:
            - key: {{ $from.key }}
              path: {{ $name }}
      {{- end }}
{{- with .Values.tls.existingSecret }}
- name: tls
  secret:
    secretName: {{ . }}
    defaultMode: 288
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
