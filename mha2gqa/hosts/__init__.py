"""Hosts: classes with a number of KV heads, for models whose own class knows only multi-head attention."""

from mha2gqa.hosts.rehost import host_config, hosted_groups, rehost

__all__ = ["host_config", "hosted_groups", "rehost"]
