"""What bench/gpu.py runs: a plan of sections (plan.py), one child process each (runner.py starts it, worker.py is it),
and a report that is complete after every row (report.py). The other modules are what the items of the plan call.
"""
