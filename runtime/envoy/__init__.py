"""The second front end: this server inside Envoy.

Owns: Envoy's configuration and life: how the process becomes Envoy, what Envoy calls,
how both end. Must not: know gRPC (runtime/asgi) or models (an Engine does).

    hotset serve --frontend envoy
        launch    checks what can be checked, then the process becomes Envoy (exec)
        Envoy     loads pyvoy, which starts Python and calls runtime.envoy.app:app
        app       composes the engine on its event loop, says that it is there
        Envoy     listens; each request is a task on that loop

    hotset serve --frontend envoy --frontends N
        child     a child of the supervisor (runtime/tree/) becomes Envoy likewise
        front     what app composes then: the same services, over an engine elsewhere
"""
