"""Fully sharded training (FSDP2): each process keeps a piece of every parameter, moment and average."""

import os
from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor, distribute_tensor

from ldmae.config.training import TrainingConfig
from ldmae.core.errors import UserError

_OTHER_ENGINES = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
_CHECKPOINTED = "_checkpoint_wrapped_module."


def is_sharded(accelerator: Accelerator) -> bool:
    """Tells whether the launch asks for parameters in pieces."""
    return accelerator.distributed_type == DistributedType.FSDP


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor that lies in pieces as one, in every process (all must call it); another as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def piece(tensor: Tensor) -> Tensor:
    """Returns this process's piece of a tensor, which shares its memory; another tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def copy_whole(source: Tensor, target: Tensor) -> None:
    """Copies a whole tensor, or this process's piece of it, into one that may lie in pieces."""
    if isinstance(target, DTensor):
        source = distribute_tensor(source.to(target.device), target.device_mesh, target.placements)
    piece(target).copy_(piece(source))


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors whole, in every process (all must call it); what lay in pieces then lies on the CPU."""
    return {
        name: whole(tensor).cpu() if isinstance(tensor, DTensor) else tensor
        for name, tensor in tensors.items()
    }


def check_launch(stage: str, config: TrainingConfig, accelerator: Accelerator, objective: nn.Module) -> None:
    """Raises where a training can't be done as it was launched; the objective may be without memory.

    Raises:
        UserError: there are more processes than images a step; the launch is by DeepSpeed or Megatron-LM, or
            asks for FSDP where accelerate has none, or for what can't be sharded; the model names no blocks
            to compile.
    """
    if config.batch_size < accelerator.num_processes:
        raise UserError(
            f"{stage}: batch_size={config.batch_size} is less than {accelerator.num_processes} processes; "
            "give each process at least one image"
        )
    kind = accelerator.distributed_type
    if kind in _OTHER_ENGINES:
        raise UserError(
            f"{stage}: {kind.value} is not supported; launch with --multi_gpu, or with FSDP where parameters "
            "do not fit"
        )
    if is_sharded(accelerator):
        _refuse_unsharded(stage, config, accelerator.state.fsdp_plugin, objective)
    elif os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise UserError(
            f"{stage}: FSDP was asked for, but accelerate shards over several GPUs only, and this launch is "
            f"{kind.value}; launch with --multi_gpu"
        )
    model: Any = objective.model
    if config.compile and not getattr(model, "_repeated_blocks", None):
        raise UserError(
            f"{stage}: compile=true, but {type(model).__name__} names no blocks to compile; set compile=false"
        )


def _refuse_unsharded(stage: str, config: TrainingConfig, plugin: Any, objective: nn.Module) -> None:
    """Raises a UserError for a launch, or an objective, of a kind that cannot be sharded here."""
    faults = {
        "fsdp_version 1; set fsdp_version: 2": plugin.fsdp_version != 2,
        "fsdp_offload_params; set it to false": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "a discriminator; launch with --multi_gpu": getattr(objective, "adversary", None) is not None,
        "alignment; launch with --multi_gpu": getattr(objective, "projection", None) is not None,
        f"compile=true; set {stage}.training.compile=false": config.compile,
    }
    for fault, met in faults.items():
        if met:
            raise UserError(f"{stage}: FSDP does not support {fault}")


def set_up_sharding(accelerator: Accelerator, model: nn.Module) -> None:
    """Has accelerate shard a model's parameters by its blocks.

    Precision stays autocast's, as in every other launch, for losses and weights are to be those of one
    process.
    """
    plugin: Any = accelerator.state.fsdp_plugin
    present = {type(module).__name__ for module in model.modules()}
    blocks: Any = getattr(model, "_no_split_modules", None)
    plugin.auto_wrap_policy = transformer_auto_wrap_policy
    plugin.transformer_cls_names_to_wrap = sorted(present & set(blocks or ()))
    plugin.mixed_precision_policy = None
    plugin.cpu_ram_efficient_loading = False


def plain_name(parameter: str) -> str:
    """Returns a parameter's name without what activation checkpointing puts in, as state dicts have it."""
    return parameter.replace(_CHECKPOINTED, "")
