"""The shape of the decoder. One number: the defaults are GPT-2's smallest, 124,439,808 parameters."""

from dataclasses import dataclass

from gpt2_lightning.settings.setting import Settings, setting


@dataclass(kw_only=True, slots=True)
class DecoderConfig(Settings, group="model"):
    """GPT-2's hyperparameters (Radford et al. 2019, table 2), and what GPT-1 had otherwise."""

    n_layer: int = setting(12, "number of blocks", at_least=1)
    n_head: int = setting(12, "attention heads a block", at_least=1)
    n_embd: int = setting(768, "width", at_least=1)
    block_size: int = setting(1024, "context length in tokens", at_least=1)
    vocab_size: int = setting(50257, "vocabulary size", at_least=2)
    dropout: float = setting(0.0, "dropout probability", at_least=0, below=1)
    norm: str = setting("pre", "norm placement (pre: GPT-2, post: GPT-1)", choices=("pre", "post"))
    attention_window: int | None = setting(
        None, "tokens a position attends to, itself included (none: the whole context)", at_least=1
    )
    document_mask: bool = setting(False, "attention and positions stay within a document: they begin anew after end-of-text")
    init_std: float = setting(0.02, "standard deviation of the initial weights", at_least=0)

    def check_rules(self) -> None:
        """The width is shared out evenly among the heads."""
        if self.n_embd % self.n_head:
            near = max(h for h in range(1, min(self.n_head, self.n_embd) + 1) if self.n_embd % h == 0)
            raise self.refuse("n_head", f"must divide the width model.n_embd = {self.n_embd}", f"Set model.n_head={near}")
