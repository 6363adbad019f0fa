"""What a model takes on devices that need not be there; see docs/plan.md.

`jaxllama.plan.request.check_plan` makes a request, `jaxllama.plan.run.plan` a plan of it.
"""
