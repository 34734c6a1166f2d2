"""The page of `selftaught play`: a session object without any web code, a server on loopback, and one static page."""
