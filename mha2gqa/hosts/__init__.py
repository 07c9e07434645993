"""Hosts: classes with a number of KV heads, for models whose own class knows only multi-head attention."""

from mha2gqa.hosts.choice import counted, has_hosts, host_config, hosts_by_groups

__all__ = ["counted", "has_hosts", "host_config", "hosts_by_groups"]
