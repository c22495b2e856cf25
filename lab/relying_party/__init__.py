"""The lab's stand-in for applications that sign their users in by OpenID Connect."""
