{{- /* A pod's template, as YAML. `.follows`: of one that has workers of a model over several nodes, and takes no requests. */ -}}
{{- define "twogear.pod" -}}
metadata:
  labels:
    {{- include "twogear.labels" . | nindent 4 }}
    # Routers read our metrics under vLLM's names.
    llm-d.ai/engine-type: vllm
    inference.networking.k8s.io/engine-type: vllm
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/profile: {{ .Values.profile | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false
  # Kubernetes's own first process then picks up what an engine that was killed leaves behind.
  shareProcessNamespace: true
  {{- with .Values.serviceAccountName }}
  serviceAccountName: {{ . }}
  {{- end }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  # Until preStop is over, then the drain, then the time to end.
  terminationGracePeriodSeconds: {{ add .Values.preStopSeconds .Values.drainSeconds 15 }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    seccompProfile: {type: RuntimeDefault}
  containers:
    - name: twogear
      image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [twogear]
      args:
        {{- include "twogear.args" . | nindent 8 }}
      env:
        - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        {{- with .Values.apiKey }}
        {{- if .existingSecret }}
        - {name: TWOGEAR_API_KEY, valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .key }}}}}
        {{- end }}
        {{- end }}
        {{- with .Values.hubToken }}
        {{- if .existingSecret }}
        - {name: HF_TOKEN, valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .key }}}}}
        {{- end }}
        {{- end }}
        {{- with .Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- if not .follows }}
      ports:
        - {name: http, containerPort: 8000}
        {{- if .Values.kvEvents.enabled }}
        - {name: kv-events, containerPort: {{ .Values.kvEvents.port }}}
        {{- end }}
      # The front end listens within seconds, once a model from the hub has its tokenizer here. From then on the
      # process is alive, also while the model loads; the engine is watched by the front end itself.
      startupProbe:
        httpGet: {path: /live, port: http}
        periodSeconds: 5
        failureThreshold: {{ div (add .Values.startupSeconds 4) 5 }}
      livenessProbe:
        httpGet: {path: /live, port: http}
        periodSeconds: 10
        timeoutSeconds: 10
        failureThreshold: 6
      # 503 while the model loads, without an engine, and while the server ends.
      readinessProbe:
        httpGet: {path: /health, port: http}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 2
      {{- end }}
      lifecycle:
        preStop:
          sleep: {seconds: {{ .Values.preStopSeconds }}}
      resources:
        {{- $resources := deepCopy .Values.resources }}
        {{- if gt (int .Values.gpus) 0 }}
        {{- $resources = mustMergeOverwrite $resources (dict "limits" (dict "nvidia.com/gpu" (.Values.gpus | toString))) }}
        {{- end }}
        {{- toYaml $resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        capabilities: {drop: [ALL]}
      volumeMounts:
        - {name: cache, mountPath: /home/twogear/.cache}
        - {name: shared-memory, mountPath: /dev/shm}
        {{- if .Values.profile }}
        - {name: profile, mountPath: /etc/twogear/profile, readOnly: true}
        {{- end }}
        {{- if .Values.apiKeys.existingSecret }}
        - {name: keys, mountPath: /etc/twogear/keys, readOnly: true}
        {{- end }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: cache
      {{- if .Values.cache.existingClaim }}
      persistentVolumeClaim: {claimName: {{ .Values.cache.existingClaim }}}
      {{- else }}
      emptyDir: {sizeLimit: {{ .Values.cache.sizeLimit }}}
      {{- end }}
    - name: shared-memory
      emptyDir: {medium: Memory, sizeLimit: {{ .Values.sharedMemory }}}
    {{- if .Values.profile }}
    - name: profile
      configMap: {name: {{ include "twogear.name" . }}}
    {{- end }}
    {{- if .Values.apiKeys.existingSecret }}
    - name: keys
      secret: {secretName: {{ .Values.apiKeys.existingSecret }}}
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- $selector := dict "labelSelector" (dict "matchLabels" (fromYaml (include "twogear.selector" .))) }}
    {{- range .Values.topologySpreadConstraints }}
    - {{ merge (deepCopy .) $selector | toJson }}
    {{- end }}
  {{- end }}
{{- end }}
