"""Names of options of the other commands that users of other tools type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ddpm.synonyms.choices import ALL, BF16, CARD, DDIM, PRECISION, Row

DRAW = (
    Row("checkpoint checkpoint_path ckpt_path model_path model run resume resume_checkpoint load "
        "load_path model_dir weights_path path pretrained_model_name_or_path network_pkl",
        "ckpt={}"),
    Row("num_inference_steps sampling_timesteps ddim_steps sampling_steps num_sampling_steps "
        "sample_steps num_steps n_steps timesteps num_timesteps timestep_respacing nfe t "
        "diffusion_steps inference_steps sampler.num_inference_steps sampler.num_steps "
        "trainer.max_steps", "steps={}", "network calls"),
    Row("guidance_scale cfg_scale cfg cond_scale guidance_strength classifier_free_guidance scale "
        "w", "guidance={}"),
    Row("classifier_scale", "guide_scale={}"),
    Row("guide_model", "guide={}"),
    Row("classifier classifier_path", "guide=...",
        "module:function of your own, which returns the score of the classifier"),
    Row("classifier_use_fp16 classifier_width classifier_depth classifier_attention_resolutions "
        "classifier_use_scale_shift_norm classifier_resblock_updown classifier_pool", "",
        "guide=module:function builds its own classifier; leave it out"),
    Row("cfg_interval guidance_range", "guidance_interval={}"),
    Row("rescale cfg_rescale", "guidance_rescale={}"),
    Row("use_ddim ddim", "sampler={}", "", DDIM),
    Row("scheduler sampling_method solver sampler_name method sampler.name sampler.type",
        "sampler={}"),
    Row("ddim_eta ddim_sampling_eta eta sampler.eta", "sampler=ddim sampler.eta={}"),
    Row("clip_denoised clip_sample", "sampler.clip={}", "",
        {"true": "static", "false": "none"}),
    Row("sigma_small", "sampler=ddpm sampler.variance={}", "",
        {"true": "fixed_small", "false": "fixed_large"}),
    Row("label labels class class_label class_labels class_id class_idx y", "classes=[{}]"),
    Row("bs batch batchsize eval_batch_size per_device_eval_batch_size trainer.batch_size",
        "batch_size={}"),
    Row("use_ema ema", "weights={}", "", {"true": "ema", "false": "raw"}),
    Row("amp fp16 use_fp16 half mixed_precision autocast dtype trainer.precision", "precision={}",
        "fp16 needs a GPU, bf16 does not", PRECISION),
    Row("bf16 use_bf16", "precision={}", "", BF16),
    Row("gpus n_gpus num_gpus devices nproc_per_node num_processes", "launch.processes={}", "",
        ALL),
    Row("gpu gpu_id device_id cuda use_cuda", "device=cuda", CARD),
    Row("cpu use_cpu no_cuda", "device=cpu"),
    Row("output output_dir outdir out_dir save_dir results_folder sample_dir save_path logdir "
        "output_path", "out={}"),
    Row("manual_seed random_seed seeds generator", "seed=...",
        "of the first sample and all others"),
    Row("image_size resolution size img_size data.image_size height width", "",
        "the size comes from the checkpoint; leave it out"),
    Row("class_cond num_classes learn_sigma noise_schedule num_channels num_res_blocks num_heads "
        "num_heads_upsample num_head_channels attention_resolutions channel_mult dropout "
        "use_checkpoint use_scale_shift_norm resblock_updown use_new_attention_order use_kl "
        "predict_xstart rescale_timesteps rescale_learned_sigmas beta_schedule objective "
        "prediction_type", "",
        "it comes from the checkpoint; leave it out"),
    Row("init_image image init_img", "", "ddpm-interpolate a=... b=... starts from pictures"),
    Row("prompt negative_prompt text caption", "",
        "no network here is given text; classes= chooses classes"),
)  # fmt: skip

OTHERS: Mapping[str, Sequence[Row]] = {
    "sample": (
        Row("n num n_samples nsamples num_images num_sample samples count num_images_per_prompt "
            "trainer.preview_samples", "num_samples={}"),
        Row("file_type type image_format save_format", "format={}"),
        Row("cond given conditioning", "condition={}", "a file that holds what is given"),
        Row("gif save_trajectory save_intermediates progress return_all_timesteps",
            "trajectory=true"),
        *DRAW,
    ),
    "interpolate": (
        Row("n num num_samples frames n_frames steps_between n_interp num_interp num_steps lam",
            "num_frames={}"),
        Row("image1 img1 x1 start from source image_a img_a first", "a={}"),
        Row("image2 img2 x2 end to target image_b img_b last second", "b={}"),
        Row("timestep noise_level t_start strength noising_step", "t={}"),
        *DRAW,
    ),
    "evaluate": (
        Row("metric", "metrics=[{}]"),
        Row("fid", "metrics=[fid]"),
        Row("kid", "metrics=[kid]"),
        Row("is isc inception_score", "metrics=[isc]"),
        Row("prc precision_recall", "metrics=[prc]"),
        Row("nll bits_per_dim", "metrics=[bpd]"),
        Row("real ref ref_batch ref_path reference_path dataset data data_path dataset_path "
            "data_dir data.path stats dataset_name fid_stats", "reference={}"),
        Row("images sample_path samples_dir sample_dir fake generated sample_batch",
            "samples={}"),
        Row("n n_samples nsamples num num_fid_samples", "num_samples={}"),
        Row("feature_extractor inception detector", "extractor={}"),
        *DRAW[:-4],
    ),
    "average": (
        Row("checkpoint model_path model checkpoint_path run path file", "ckpt={}"),
        Row("sigma sigma_rels ema_sigma_rel std ema_std outstd", "sigma_rel={}"),
        Row("at_step steps max_steps", "step={}"),
        Row("output output_dir outdir out_dir", "out={}"),
    ),
    "import": (
        Row("ckpt checkpoint model_path checkpoint_path path model weights pt", "file={}"),
        Row("from format library framework type kind", "source={}"),
        Row("image_size resolution img_size", "size={}"),
        Row("output output_dir outdir out_dir", "out={}"),
    ),
    "export": (
        Row("checkpoint model_path model checkpoint_path run path file", "ckpt={}"),
        Row("to target library type", "format={}"),
        Row("output output_path file_name filename", "out={}"),
        Row("use_ema ema", "weights={}", "", {"true": "ema", "false": "raw"}),
    ),
}  # fmt: skip
