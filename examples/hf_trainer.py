"""A small LLaMA under the Hugging Face Trainer."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from warmgap.torch import Muon
from warmgap.transformers import WarmgapTrainer, split_factory

llama = LlamaForCausalLM(
    LlamaConfig(vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
)
text = (b"The learning rate rises while the loss falls. " * 20)[:512]
windows = torch.tensor(list(text)).reshape(-1, 16)

trainer = WarmgapTrainer(
    model=llama,
    args=TrainingArguments(
        output_dir="run",
        max_steps=20,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        dataloader_pin_memory=False,
    ),
    train_dataset=[{"input_ids": window, "labels": window} for window in windows],
    optimizer_cls_and_kwargs=(split_factory(Muon), {"lr": 2e-3}),
)
trainer.train()
print(trainer.state.log_history[0])  # with lr, phase and gap
