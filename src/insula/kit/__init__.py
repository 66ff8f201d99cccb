"""Small helpers without domain, one module a theme; none imports another but for `errors`.

`run` is the only place in Insula that spawns processes. Nothing here may know what a machine is.
"""
