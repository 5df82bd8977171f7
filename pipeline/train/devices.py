"""Several devices that train one round (DDP): how many, and what they tell one another.

Each loads the base and draws the LoRA's start for itself, from the same file and seed; gradients
are added up once a step, losses where they are looked at.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import RequestError


class Devices:
    """Those of one training, seen from one of them.

    Args:
        accumulation: batches to a step, of all devices.

    Raises:
        RequestError: they cannot share a step evenly.
    """

    def __init__(self, accelerator: Accelerator, accumulation: int) -> None:
        self._accelerator = accelerator
        self.count, self.place = accelerator.num_processes, accelerator.process_index
        if accumulation % self.count:
            raise RequestError(
                f"[train].accumulation is {accumulation}, which {self.count} devices cannot share "
                f"evenly. Use {self.count} or a multiple of it: each device then takes its part of "
                "a step's batches."
            )

    def wrapped(self, network: nn.Module) -> nn.Module:
        """`network` on this device, so that a backward pass averages gradients over devices.

        Nothing frozen is sent: a base is gigabytes, which every device has read, and gloo sends
        neither fp8 nor what bitsandbytes packs.
        """
        still = [name for name, value in network.named_parameters() if not value.requires_grad]
        still += [name for name, _ in network.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(network, still)
        wrapped: nn.Module = self._accelerator.prepare(network)
        return wrapped

    def adding_up(self, wrapped: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Around a backward pass: devices add up their gradients with the last of several."""
        if last or self.count == 1:
            return nullcontext()
        context: AbstractContextManager[None] = self._accelerator.no_sync(wrapped)
        return context

    def sum(self, values: Tensor) -> Tensor:
        """Over devices, of a tensor that each has in the same shape."""
        if self.count == 1:
            return values
        total: Tensor = self._accelerator.reduce(values, "sum")
        return total

    def agree_on(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gives all devices the first one's values, of what each computed for itself: on GPUs not
        to the last bit alike."""
        if self.count > 1:
            for parameter in parameters:
                parameter.data.copy_(broadcast(parameter.data))
