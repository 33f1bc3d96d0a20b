{{- /* What a schema cannot say, or not in words that help. Each message says what is wrong and what to do. */}}
{{- define "gateway.checks" -}}
{{- $own := .Values.config.passthrough }}
{{- if not .Values.secrets.masterKey.existingSecret }}
{{- fail (printf "secrets.masterKey.existingSecret must name a Secret with the master key. Make one: kubectl create secret generic gateway-keys --namespace %s --from-literal=LITELLM_MASTER_KEY=sk-$(openssl rand -hex 24)" .Release.Namespace) }}
{{- end }}
{{- if eq .Values.database.type "postgresql" }}
{{- if not .Values.database.existingSecret }}
{{- fail "database.existingSecret must name the Secret with PostgreSQL's URL, under the key database.key" }}
{{- end }}
{{- else if or .Values.autoscaling.enabled (gt (int .Values.replicaCount) 1) }}
{{- fail "several pods need one database: each would have keys and usage of its own. Set database.type to postgresql, or replicaCount to 1 without autoscaling" }}
{{- else if not (empty .Values.database.existingSecret) }}
{{- fail "database.existingSecret is for PostgreSQL: set database.type to postgresql, or leave it out" }}
{{- end }}
{{- if and .Values.migration.enabled (not .Values.migration.existingSecret) }}
{{- fail "migration.existingSecret must name the Secret with the URL of the database user that may change tables" }}
{{- end }}
{{- if and .Values.migration.enabled (ne .Values.database.type "postgresql") }}
{{- fail "migration is for PostgreSQL: a pod with SQLite changes its file itself" }}
{{- end }}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) }}
{{- fail "autoscaling.minReplicas must not be more than autoscaling.maxReplicas" }}
{{- end }}
{{- if and (eq (toString $own.workers) "auto") (not (dig "limits" "cpu" "" .Values.resources)) }}
{{- fail "config.passthrough.workers: auto would count the cores of the node: write a number, or set resources.limits.cpu" }}
{{- end }}
{{- range $path, $instead := dict "general_settings.master_key" "secrets.masterKey" "general_settings.salt_key" "secrets.saltKey" "general_settings.database_url" "database" "passthrough.redis_url" "redis.existingSecret" "passthrough.listen" "service.containerPort and tls" "environment_variables" "environment, or secrets.environment for secrets" }}
{{- $at := $.Values.config }}
{{- range splitList "." $path }}
{{- $at = ternary (get (default dict $at) .) "" (kindIs "map" $at) }}
{{- end }}
{{- if $at }}
{{- fail (printf "config.%s is set by the chart: use %s" $path $instead) }}
{{- end }}
{{- end }}
{{- include "gateway.refuseSecrets" (dict "path" "config" "name" "" "value" .Values.config) }}
{{- with .Values.networkPolicy }}
{{- if .enabled }}
{{- if not (or .ingress.namespaces .ingress.from) }}
{{- fail "networkPolicy.ingress names nobody, so nobody could reach the gateway: name namespaces" }}
{{- end }}
{{- if not .egress.to }}
{{- fail "networkPolicy.egress.to names nobody, so the gateway could reach no server and no database: name them" }}
{{- end }}
{{- range $index, $peer := .egress.to }}
{{- if eq (hasKey $peer "cidr") (or (hasKey $peer "namespace") (hasKey $peer "podLabels")) }}
{{- fail (printf "networkPolicy.egress.to[%d] must have either cidr, or namespace and podLabels" $index) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) }}
{{- fail "httpRoute.parentRefs must name the Gateway, as in [{name: public, namespace: gateways}]" }}
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) }}
{{- fail "ingress.hosts must name a host, as in [{host: llm.example.com}]" }}
{{- end }}
{{- end }}

{{- /* `config` becomes a ConfigMap, which more people may read than Secrets. */}}
{{- define "gateway.refuseSecrets" -}}
{{- $path := .path }}
{{- $name := .name }}
{{- if kindIs "map" .value }}
{{- range $inner, $value := .value }}
{{- $kept := has $name (list "headers" "alert_to_webhook_url") | ternary $name $inner }}
{{- $secret := or (ne $kept "headers") (regexMatch "(?i)auth|key|token|secret|cookie|pass" $inner) }}
{{- include "gateway.refuseSecrets" (dict "path" (printf "%s.%s" $path $inner) "name" ($secret | ternary $kept $inner) "value" $value) }}
{{- end }}
{{- else if kindIs "slice" .value }}
{{- range $index, $value := .value }}
{{- include "gateway.refuseSecrets" (dict "path" (printf "%s[%d]" $path $index) "name" (ternary "" $name (eq $name "headers")) "value" $value) }}
{{- end }}
{{- else if kindIs "string" .value }}
{{- $names := list "api_key" "client_secret" "access_key_id" "secret_access_key" "session_token" "webhook_url" "slack_webhook_url" "alert_to_webhook_url" "headers" }}
{{- if and .value (has $name $names) (not (contains "os.environ/" .value)) }}
{{- fail (printf "%s is a secret, and config is no place for one: write os.environ/NAME, and name the Secret in secrets.environment.NAME" $path) }}
{{- end }}
{{- if regexMatch "://[^/?#]*@" .value }}
{{- fail (printf "%s has a password in its URL: write os.environ/NAME, and name the Secret in secrets.environment.NAME" $path) }}
{{- end }}
{{- end }}
{{- end }}
