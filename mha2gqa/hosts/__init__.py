"""Hosts: classes with a number of KV heads, for models whose own class knows only multi-head attention."""

from mha2gqa.hosts.rehost import has_hosts, host_config, hosts_by_groups, rehost

__all__ = ["has_hosts", "host_config", "hosts_by_groups", "rehost"]
