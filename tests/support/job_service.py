"""Beam's own job service, open to other hosts, with two workers for a job instead of one.

`python job_service.py ADDRESS PORT`, where ADDRESS is this host's name for the others.
"""

import logging
import sys

from apache_beam.runners.portability import local_job_service, local_job_service_main
from apache_beam.runners.portability.fn_api_runner import fn_runner, worker_handlers

ADDRESS, PORT = sys.argv[1:]
WORKERS = 2


class Runner(fn_runner.FnApiRunner):
    """The service passes `direct_num_workers` on to no runner, so that a job had one worker."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._num_workers = WORKERS


class Service(local_job_service.LocalJobServicer):
    def get_bind_address(self):
        return "[::]"

    def get_service_address(self):
        return ADDRESS


fn_runner.FnApiRunner = Runner
local_job_service.LocalJobServicer = Service
worker_handlers.ExternalWorkerHandler.host_from_worker = lambda self: ADDRESS
logging.basicConfig(level=logging.INFO)
local_job_service_main.run(["--port", PORT])
