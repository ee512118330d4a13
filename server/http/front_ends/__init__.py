"""Several processes that speak HTTP on one port, in front of the one process that serves.

A front end takes connections, reads heads and bodies, and writes answers, TLS and limits of connections among it. It
hands each request over and knows nothing of it. All that requests share stays in one place: keys and what they may
spend, who waits and who runs, stored responses, metrics, the engines.
"""
