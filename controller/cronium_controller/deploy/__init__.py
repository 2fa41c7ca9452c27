"""Runners on hosts: which installed forms there are, whether they are as they were built, and how new ones roll out.

One upload and one installation are `install`'s and `uploading`'s; the ledger of what was deployed is `deployments`'s.
"""
