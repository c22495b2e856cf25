"""The lab: two bare Debian hosts and what a homelab meets outside, in containers on this machine."""
