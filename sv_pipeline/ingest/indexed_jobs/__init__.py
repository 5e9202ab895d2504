"""Batches as indexes of Kubernetes Jobs: the settings, the manifest, the calls of the API, and the runner that watches.

The client of Kubernetes is an extra of the installation (``sv_pipeline[k8s]``).
"""
