"""The lab's stand-in for Cloudflare, and for cloudflared.

`edge.py` is the API and the edge in one program; `connector.py` takes cloudflared's place where the real one cannot be
had. Both speak cloudflared's HTTP/2 protocol, so the real program works with this edge.
"""
