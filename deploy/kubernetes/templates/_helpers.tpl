{{- define "twogear.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-{{ .Chart.Name }}{{ end }}
{{- end }}

{{- define "twogear.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* Of the pods that take requests: with several nodes, the first of each group. */ -}}
{{- define "twogear.serving" -}}
{{ include "twogear.selector" . }}
{{- if gt (int .Values.nodes) 1 }}
leaderworkerset.sigs.k8s.io/worker-index: "0"
{{- end }}
{{- end }}

{{- define "twogear.scaled" -}}
{{- if gt (int .Values.nodes) 1 -}}
{apiVersion: leaderworkerset.x-k8s.io/v1, kind: LeaderWorkerSet, name: {{ include "twogear.name" . }}}
{{- else -}}
{apiVersion: apps/v1, kind: Deployment, name: {{ include "twogear.name" . }}}
{{- end }}
{{- end }}

{{- define "twogear.labels" -}}
{{ include "twogear.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* What one value asks of another. */ -}}
{{- define "twogear.check" -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) }}
{{- fail "httpRoute.parentRefs: name the gateway, as in [{name: my-gateway}]" }}
{{- end }}
{{- if and .Values.httpRoute.toInferencePool (not .Values.inferencePool.enabled) }}
{{- fail "httpRoute.toInferencePool needs inferencePool.enabled=true" }}
{{- end }}
{{- if and .Values.inferencePool.enabled (not .Values.inferencePool.endpointPicker.name) }}
{{- fail "inferencePool.endpointPicker.name: name the service of the endpoint picker" }}
{{- end }}
{{- if and .Values.kvEvents.enabled (gt (int .Values.dataParallelSize) 1) }}
{{- fail "kvEvents needs dataParallelSize=1: the engines of a pod would share one port; take more replicas" }}
{{- end }}
{{- if and (gt (int .Values.nodes) 1) (gt (int .Values.dataParallelSize) 1) }}
{{- fail "nodes needs dataParallelSize=1: an engine over several nodes has its server to itself; take more replicas" }}
{{- end }}
{{- if and (gt (int .Values.nodes) 1) (not .Values.engineArgs) }}
{{- fail "nodes needs engineArgs: say how the model is spread, as in [--tensor-parallel-size, \"8\", --pipeline-parallel-size, \"2\"]" }}
{{- end }}
{{- if and (ne .Values.autoscaling.kind "none") (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) }}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas" }}
{{- end }}
{{- if and (gt (int .Values.gpus) 0) (lt (int .Values.gpus) (int .Values.dataParallelSize)) }}
{{- fail "gpus: each of the dataParallelSize engines of a pod needs one" }}
{{- end }}
{{- end }}

{{- /* The arguments of `twogear`. $(NAMES) are filled in by Kubernetes, those of LWS by LeaderWorkerSet. */ -}}
{{- define "twogear.args" -}}
- serve
{{- with .Values.model }}
- {{ . | quote }}
{{- end }}
- --host
- 0.0.0.0
- --port
- "8000"
{{- with .Values.servedModelName }}
- --served-model-name
- {{ . | quote }}
{{- end }}
{{- if .Values.profile }}
- --profile
- /etc/twogear/profile/profile.toml
{{- end }}
{{- if .Values.apiKeys.existingSecret }}
- --api-keys
- /etc/twogear/keys/{{ .Values.apiKeys.key }}
{{- end }}
- --data-parallel-size
- {{ .Values.dataParallelSize | quote }}
- --api-server-count
- {{ .Values.apiServerCount | quote }}
- --drain-seconds
- {{ .Values.drainSeconds | quote }}
- --max-connections-per-address
- {{ .Values.maxConnectionsPerAddress | quote }}
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- if or .Values.engineArgs .Values.kvEvents.enabled }}
- --
{{- range .Values.engineArgs }}
- {{ . | quote }}
{{- end }}
{{- if gt (int .Values.nodes) 1 }}
- --nnodes
- {{ .Values.nodes | quote }}
- --node-rank
- $(LWS_WORKER_INDEX)
- --master-addr
- $(LWS_LEADER_ADDRESS)
{{- end }}
{{- if .Values.kvEvents.enabled }}
- --kv-events-config
- {{ dict "enable_kv_cache_events" true "publisher" "zmq" "endpoint" (printf "tcp://*:%d" (int .Values.kvEvents.port)) "topic" (printf "kv@$(POD_IP)@%s" (include "twogear.model" .)) | toJson | squote }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The name that clients send. */ -}}
{{- define "twogear.model" -}}
{{- if .Values.servedModelName }}{{ .Values.servedModelName }}{{ else if hasPrefix "/" .Values.model }}{{ base .Values.model }}{{ else }}{{ .Values.model | default "twogear-tiny" }}{{ end }}
{{- end }}
