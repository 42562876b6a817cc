"""Names of options of ``ddpm-train`` that users of other tools type."""

from __future__ import annotations

from ddpm.synonyms.choices import ALL, BF16, CARD, DDIM, DEVICE, PRECISION, Row

_ON = {"1": "true", "yes": "true", "on": "true", "0": "false", "no": "false", "off": "false"}
_UNSET = {"-1": "null"}
_X0 = {"true": "pred_x0", "false": "pred_noise"}
_LATEST = {"true": "outputs/latest", "latest": "outputs/latest", "auto": "outputs/latest"}
_EPOCHS = "optimizer steps: epochs times samples, divided by trainer.batch_size"
_CHANNELS = "model.dim={}|model.model_channels={}|model.width={}"
_LEVELS = "model.dim_mults=[{}]|model.channel_mult=[{}]"
_NO_COUNTERPART = "it has no counterpart; leave it out"

TRAIN = (
    # Length and batch
    Row("epochs epoch max_epochs num_epochs n_epochs nepochs num_train_epochs max_epoch",
        "trainer.max_steps=...", _EPOCHS),
    Row("steps num_steps n_steps iterations num_iterations iters n_iters n_iter max_iter max_iters "
        "total_steps total_iters train_steps train_num_steps num_train_steps max_train_steps "
        "training_steps train_iters", "trainer.max_steps={}", "optimizer steps"),
    Row("max_time minutes time_limit max_duration time_budget max_hours hours train_minutes",
        "trainer.max_minutes=...", "steps are estimated from a few timed ones"),
    Row("lr_anneal_steps", "trainer.max_steps={} trainer.lr_decay=cosine", "",
        {"0": "trainer.max_steps=..."}),
    Row("kimg total_kimg duration total_images", "trainer.max_steps=...",
        "optimizer steps: images divided by trainer.batch_size"),
    Row("bs batch batchsize train_batch_size per_device_train_batch_size global_batch_size "
        "data.batch_size batch_gpu total_batch_size", "trainer.batch_size={}",
        "of one optimizer step, over all processes"),
    Row("microbatch micro_batch_size", "trainer.accumulate=...",
        "the number of micro-batches per batch"),
    Row("split_batches", "", "trainer.batch_size is that of an optimizer step, over all processes"),
    Row("gradient_accumulation_steps gradient_accumulation gradient_accumulate_every grad_accum "
        "accumulate_grad_batches accum_iter accumulation_steps grad_accum_steps",
        "trainer.accumulate={}", "trainer.batch_size is the batch of all micro-batches"),
    # Optimizer
    Row("learning_rate lr_rate base_lr base_learning_rate train_lr max_lr",
        "trainer.lr={}"),
    Row("warmup warmup_steps lr_warmup_steps num_warmup_steps warmup_iters lr_rampup",
        "trainer.lr_warmup={}", "optimizer steps"),
    Row("lr_scheduler lr_schedule lr_scheduler_type lr_policy", "trainer.lr_decay={}", "",
        {"linear": "cosine", "polynomial": "cosine", "cosine_with_restarts": "cosine",
         "none": "constant", "constant_with_warmup": "constant", "inverse_sqrt": "constant"}),
    Row("optimizer optim opt", "", "the optimizer is AdamW; its options are trainer.lr, "
        "trainer.adam_betas and trainer.weight_decay"),
    Row("wd adam_weight_decay", "trainer.weight_decay={}"),
    Row("betas adam_beta1 beta1", "trainer.adam_betas=[...,0.999]"),
    Row("adam_beta2 beta2", "trainer.adam_betas=[0.9,...]"),
    Row("adam_epsilon adam_eps", "", "the epsilon of AdamW is 1e-8; leave it out"),
    Row("grad_clip clip_grad max_grad_norm gradient_clip_val gradient_clipping grad_clip_norm "
        "clip_norm clip_grad_value", "trainer.clip_grad_norm={}"),
    Row("ema_rate ema_max_decay ema.decay", "trainer.ema_decay={}",
        "one decay; trainer.posthoc_ema keeps several averages"),
    Row("ema_halflife", "trainer.ema_decay=...", "0.5^(trainer.batch_size / images per half-life)"),
    Row("ema use_ema", "trainer.ema_decay={}",
        "the weights are always averaged; 0 follows the weights", {"true": "0.9999", "false": "0"}),
    Row("ema_inv_gamma ema_power", "trainer.ema_warmup=true", "inverse gamma 1, power 2/3"),
    Row("ema_update_every update_ema_every", "trainer.ema_decay=...",
        "the average is updated at each step: for every n steps, the n-th root of their decay"),
    Row("phema use_phema power_ema post_hoc_ema sigma_rel sigma_rels ema_sigma_rel ema_sigma_rels "
        "ema_stds", "trainer.posthoc_ema=[{}]", "averages for ddpm-average",
        {"true": "0.05,0.1", "false": ""}),
    # Precision, devices, speed
    Row("amp fp16 use_fp16 half precision mixed_precision autocast amp_dtype dtype",
        "trainer.precision={}", "fp16 needs a GPU, bf16 does not", PRECISION),
    Row("bf16 use_bf16 bfloat16", "trainer.precision={}", "", BF16),
    Row("fp16_scale_growth fp16_scale_window loss_scale initial_log_loss_scale", "",
        "the loss scale of fp16 adapts itself; leave it out"),
    Row("enable_xformers_memory_efficient_attention xformers flash_attn use_flash_attn "
        "enable_flash_attention", "", "attention uses the fused kernels of torch; leave it out"),
    Row("gpus n_gpus num_gpus devices ngpu n_gpu nproc_per_node num_processes nproc world_size "
        "strategy", "launch.processes={}", "", ALL),
    Row("gpu gpu_id gpu_ids device_id device_ids cuda use_cuda cuda_visible_devices",
        "device=cuda", CARD),
    Row("cpu use_cpu no_cuda", "device=cpu"),
    Row("local_rank node_rank", "", "launch.processes=, torchrun and accelerate launch set it"),
    Row("accelerator", "device={}", "", DEVICE),
    Row("workers n_workers nworkers num_data_workers dataloader_num_workers loader_workers",
        "trainer.num_workers={}"),
    Row("torch_compile use_compile compile_model", "trainer.compile={}", "", _ON),
    Row("gradient_checkpointing grad_checkpointing grad_checkpoint use_checkpoint",
        "model=iddpm_unet model.use_checkpoint={}", "", _ON),
    Row("manual_seed random_seed global_seed", "seed={}"),
    # What falls due
    Row("log_interval log_freq log_every_n_steps logging_steps print_freq print_every log_step",
        "trainer.log_every={}", "optimizer steps"),
    Row("save_every save_interval save_steps save_freq checkpointing_steps checkpoint_freq "
        "checkpoint_interval ckpt_every ckpt_interval ckpt_freq save_checkpoint_every snap "
        "save_model_every every_n_train_steps", "trainer.checkpoint_every={}", "optimizer steps"),
    Row("save_model_epochs save_every_n_epochs", "trainer.checkpoint_every=...", "optimizer steps"),
    Row("save_and_sample_every", "trainer.checkpoint_every={} trainer.preview_every={}"),
    Row("sample_every sample_interval sample_freq sample_step image_every",
        "trainer.preview_every={}", "optimizer steps"),
    Row("save_images_epochs", "trainer.preview_every=...", "optimizer steps"),
    Row("eval_every eval_steps eval_interval eval_freq val_check_interval validation_steps "
        "val_every", "trainer.evaluate_every={}", "optimizer steps"),
    Row("save_total_limit save_top_k checkpoints_total_limit max_checkpoints keep_checkpoints",
        "trainer.keep_last={}"),
    Row("calculate_fid fid eval_fid", "trainer.evaluate_every=5000 evaluation.metrics=[fid]"),
    Row("num_fid_samples fid_samples", "evaluation.num_samples={}"),
    Row("save_best_and_latest_only save_best", "trainer.evaluate_every=5000 trainer.best=fid",
        "trainer.keep_last is the number of others"),
    Row("push_to_hub hub_token hub_model_id hub_private_repo", "",
        "ddpm-export push=hf://owner/name uploads a trained run"),
    Row("wandb use_wandb wandb_project", "trainer.trackers=[wandb]"),
    Row("tensorboard use_tensorboard tb", "trainer.trackers=[tensorboard]"),
    Row("report_to log_with logger tracker", "trainer.trackers=[{}]"),
    # Data
    Row("dataset dataset_name data.name data.dataset data_name", "data={}"),
    Row("data_dir dataroot data_root data_path datadir train_data_dir dataset_path dataset_dir "
        "instance_data_dir root path folder image_dir image_folder img_dir images train_dir "
        "data.path data.dir "
        "data.root data.folder data.data_dir data.directory data.train_dir data.data_path "
        "data.image_dir data.paths data.file", "data=folder data.path={}"),
    Row("resolution size img_size imgsize im_size imagesize image_resolution data.resolution "
        "data.size data.img_size model.image_size model.size", "data.image_size={}"),
    Row("center_crop", "data.image_size=...",
        "scales pictures to cover the size, and crops the centre"),
    Row("convert_image_to", "data.color={}|data=folder data.path=... data.color={}", "",
        {"l": "grey", "rgb": "rgb", "rgba": "rgb"}),
    Row("preserve_input_precision", "data.bits={}|data=folder data.path=... data.bits={}",
        "16 keeps all levels of 16-bit grey", {"true": "16", "false": "8"}),
    Row("auto_normalize", "", "the data are always scaled to -1..1; leave it out"),
    Row("cache_dir", "", "the environment variable DDPM_CACHE names the folder of the caches"),
    Row("random_flip horizontal_flip augment_horizontal_flip random_horizontal_flip hflip xflip "
        "mirror augment data.augment data.random_flip data.hflip data.horizontal_flip",
        "data.flip={}|data=folder data.path=... data.flip={}", "", _ON),
    Row("conditional class_conditional cond use_labels labels num_classes n_classes "
        "data.conditional model.num_classes model.class_cond data.num_classes data.labels",
        "data.class_cond=true", "the number of classes comes from the data"),
    Row("in_channels out_channels image_channels channels model.in_channels model.out_channels "
        "data.channels model.channels data.num_channels nc", "",
        "the channels come from the data; data.color=grey or rgb chooses them in pictures"),
    Row("val_split val_size validation_split data.val_split val_frac", "data.val_fraction={}"),
    Row("dataset.batch_size dataloader.batch_size", "trainer.batch_size={}"),
    Row("data.num_workers data.workers dataloader.num_workers", "trainer.num_workers={}"),
    Row("num_frames n_frames clip_length video_length data.num_frames data.n_frames",
        "data=video data.frames={}"),
    Row("seq_length seq_len length sequence_length data.length", "",
        "the length of sequences comes from the data"),
    Row("shuffle pin_memory persistent_workers drop_last", "",
        "the data are always shuffled, and read ahead by trainer.num_workers processes"),
    # Network
    Row("arch architecture network net backbone model_name model_type model.name model.type unet",
        "model={}"),
    Row("model_config_name_or_path", "",
        "model= chooses the network; ddpm-import source=diffusers reads one of diffusers"),
    Row("base_dim hidden_size num_channels n_channels base_channels model_dim ngf nf ch "
        "model.hidden_size model.base_channels model.num_channels model.hidden_dim model.ch "
        "model.width model.model_channels model.dim", _CHANNELS, "channels of the first level"),
    Row("channel_mults ch_mult ch_mults dim_mult channel_multiplier model.channel_mults "
        "channel_mult model.ch_mult model.ch_mults model.channel_mult model.dim_mults", _LEVELS),
    Row("num_layers n_layers depth num_levels model.num_layers model.n_layers model.depth "
        "model.num_levels block_out_channels model.block_out_channels",
        "model.dim_mults=[1,2,4]|model.channel_mult=[1,2,4]", "an entry per level"),
    Row("layers_per_block model.layers_per_block num_blocks model.num_blocks",
        "model=iddpm_unet model.num_res_blocks={}"),
    Row("num_heads n_heads heads attention_heads model.heads model.n_heads model.num_heads "
        "model.num_attention_heads", "model.attn_heads={}|model.num_heads={}"),
    Row("attention_head_dim head_dim dim_head model.attention_head_dim model.head_dim "
        "model.num_head_channels", "model.attn_dim_head={}|model.num_head_channels={}"),
    Row("num_head_channels", "model=iddpm_unet model.num_head_channels={}", "", _UNSET),
    Row("num_heads_upsample", "model=iddpm_unet model.num_heads_upsample={}", "", _UNSET),
    Row("attn_resolutions attention_res attention_resolutions model.attn_resolutions",
        "model=iddpm_unet model.attention_resolutions=[{}]",
        "downsampling rates: 16x16 of 64x64 is 4"),
    Row("p_dropout drop_rate model.drop_rate", "model.dropout={}|model=unet model.dropout={}"),
    # Diffusion
    Row("t timesteps num_timesteps n_timesteps num_train_timesteps num_diffusion_timesteps "
        "diffusion_steps diffusion_timesteps noise_steps diffusion.timesteps diffusion.num_steps "
        "diffusion.steps diffusion.num_timesteps model.timesteps diffusion.t schedule.timesteps "
        "schedule.steps ddpm_num_steps", "schedule.num_steps={}", "T of the process"),
    Row("noise_schedule beta_schedule schedule_name noise_scheduler diffusion.schedule "
        "diffusion.beta_schedule diffusion.noise_schedule schedule.name schedule.type "
        "model.beta_schedule ddpm_beta_schedule", "schedule={}"),
    Row("schedule_fn_kwargs", "schedule=sigmoid schedule.start=...",
        "the arguments of a schedule are options of its group"),
    Row("linear_start beta_1 schedule.beta_min schedule.beta_start",
        "schedule=linear schedule.beta_start={}"),
    Row("linear_end beta_t schedule.beta_max schedule.beta_end",
        "schedule=linear schedule.beta_end={}"),
    Row("prediction_type parameterization parametrization pred_type prediction mean_type "
        "model_mean_type diffusion.objective diffusion.prediction_type model.prediction_type "
        "objective.name objective.type target", "objective={}"),
    Row("predict_xstart pred_x0 predict_x0", "objective={}", "", _X0),
    Row("predict_epsilon pred_noise predict_noise", "objective={}", "",
        {"true": "pred_noise", "false": "pred_x0"}),
    Row("v_prediction pred_v predict_v", "objective={}", "",
        {"true": "pred_v", "false": "pred_noise"}),
    Row("loss_type loss_fn criterion diffusion.loss_type trainer.loss model.loss_type",
        "objective.loss={}", "",
        {"mse": "l2", "mae": "l1", "smooth_l1": "huber", "rescaled_mse": "l2",
         "hybrid": "diffusion=iddpm",
         **dict.fromkeys(("kl", "rescaled_kl", "vlb"), "diffusion=iddpm_vlb")}),
    Row("snr_gamma min_snr min_snr_loss_weight gamma", "objective.min_snr_gamma={}", "",
        {"true": "5", "false": "null"}),
    Row("p2_loss_weight_gamma p2_loss_weight_k p2_gamma p2_k", "objective.min_snr_gamma=5",
        "docs/extending.md has P2 weighting as an objective of your own"),
    Row("learn_sigma learned_variance learned_sigma learn_variance diffusion.learn_sigma "
        "model.learn_sigma", "diffusion={}", "", {"true": "iddpm", "false": "ddpm"}),
    Row("sigma_small", "diffusion.variance={}", "",
        {"true": "fixed_small", "false": "fixed_large"}),
    Row("use_kl", "diffusion={}", "", {"true": "iddpm_vlb", "false": "ddpm"}),
    Row("rescale_learned_sigmas", "diffusion=iddpm",
        "diffusion.vlb_weight=0.001 weights the bound by T / 1000, 1 / T by 1",
        {"false": "diffusion=iddpm diffusion.vlb_weight=..."}),
    Row("schedule_sampler", "timesteps={}", "for diffusion=iddpm_vlb"),
    Row("weighting_scheme", "timesteps={}"),
    Row("logit_mean", "timesteps=logit_normal timesteps.mean={}"),
    Row("logit_std", "timesteps=logit_normal timesteps.std={}"),
    Row("p_mean", "timesteps=log_normal timesteps.p_mean={}"),
    Row("p_std", "timesteps=log_normal timesteps.p_std={}"),
    Row("sigma_data", "objective=edm objective.sigma_data={}"),
    Row("flow_shift time_shift", "schedule=rectified schedule.shift={}"),
    Row("cond_drop_prob class_dropout_prob uncond_prob p_uncond cfg_dropout label_drop_prob "
        "model.cond_drop_prob class_dropout", "data.class_cond=true diffusion.label_dropout={}"),
    Row("self_cond", "diffusion.self_condition={}", "", _ON),
    Row("noise_offset offset_noise_strength", "diffusion.offset_noise={}"),
    Row("zero_snr zero_terminal rescale_betas_zero_snr enforce_zero_terminal_snr",
        "schedule.zero_terminal_snr={}", "", _ON),
    # Previews
    Row("sampling_timesteps num_inference_steps ddim_steps sample_steps sampling_steps "
        "num_sampling_steps timestep_respacing sampler.num_steps sampler.num_inference_steps "
        "sampler.timesteps", "sampler.steps={}",
        "network calls of the previews; ddpm-sample has steps="),
    Row("use_ddim ddim", "sampler={}", "of the previews", DDIM),
    Row("prompt text caption text_encoder latent vae latent_diffusion lora unet_lora", "",
        "models here are trained on the data themselves, with class labels as condition at most"),
    Row("scheduler sampling_method sampler_name", "sampler={}", "of the previews"),
    Row("ddim_eta ddim_sampling_eta eta sampler.eta", "sampler=ddim sampler.eta={}"),
    Row("clip_denoised clip_sample", "sampler.clip={}", "",
        {"true": "static", "false": "none"}),
    Row("n num_samples n_samples nsamples sample_size num_sample eval_batch_size",
        "trainer.preview_samples={}", "of the previews; ddpm-sample has num_samples="),
    Row("guidance guidance_scale cfg_scale cfg cond_scale guidance_strength w "
        "sampler.guidance_scale sampler.guidance sampler.cfg_scale",
        "data.class_cond=true diffusion.label_dropout=0.1",
        "training for guidance; ddpm-sample has guidance="),
    Row("classes class label class_labels", "data.class_cond=true",
        "training with labels; ddpm-sample has classes="),
    Row("early_stopping patience callbacks", "trainer.best=loss", "the best checkpoint is kept"),
    # Runs
    Row("checkpoint ckpt ckpt_path checkpoint_path resume_checkpoint resume_from load load_path "
        "resume_from_checkpoint load_checkpoint resume_path model_path restore "
        "milestone load_milestone auto_resume", "resume={}", "the folder of a run",
        _LATEST),
    Row("init_from init_ckpt init_checkpoint pretrained pretrained_model pretrained_path "
        "pretrained_weights finetune finetune_from fine_tune transfer warm_start", "init={}",
        "a run or a checkpoint"),
    Row("output_dir outdir out_dir output results_folder log_dir logdir save_dir result_dir "
        "results_dir default_root_dir workdir work_dir logging_dir exp_dir save_path",
        "out={}", "the parent folder of runs"),
    Row("run_name exp_name experiment_name exp expname project project_name run",
        "name={}"),
    Row("fast_dev_run", "trainer.max_steps=2", "optimizer steps"),
    Row("verbose progress_bar show_progress steps_per_execution immiscible inception_block_idx", "",
        _NO_COUNTERPART),
    Row("overwrite force overwrite_output_dir", "",
        "no run is overwritten; give another name=, or continue one with resume="),
    Row("config config_file yaml", "",
        "no file of options is read; type them, or continue a run with resume="),
)  # fmt: skip
