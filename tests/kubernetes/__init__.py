"""The Helm chart in deploy/kubernetes."""
