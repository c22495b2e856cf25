"""The lab's stand-in for Authentik: server, worker and LDAP outpost."""
