"""Writes golden.json: schedules and single steps as diffusers computes them (made with diffusers 0.42.1, torch 2.15).

    python3 golden.py > golden.json
"""
import itertools, json
import torch, diffusers

SDXL = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, steps_offset=1)
cases = []


def case(kind, n, **overrides):
    config = {**SDXL, **overrides}
    scheduler = getattr(diffusers, kind)(**{k: v for k, v in config.items() if v is not None})
    scheduler.set_timesteps(n)
    steps = len(scheduler.timesteps)
    picks = sorted({0, 1, steps // 2, steps - 2, steps - 1} & set(range(steps)))
    points = []
    for i in picks:
        t = scheduler.timesteps[i]
        if hasattr(scheduler, "set_begin_index"):
            scheduler._step_index = i
        x, out = torch.tensor([0.7, -2.5]), torch.tensor([-0.3, 1.25])
        scaled = scheduler.scale_model_input(x, t)
        prev = scheduler.step(out, t, x).prev_sample
        if hasattr(scheduler, "set_begin_index"):
            scheduler._step_index, scheduler._begin_index = None, i
        noised = scheduler.add_noise(x, out, t[None])
        points.append(dict(i=i, t=float(t), scaled=scaled.tolist(), prev=prev.tolist(), noised=noised.tolist()))
        if hasattr(scheduler, "set_begin_index"):
            scheduler._begin_index = None
    cases.append(dict(config=dict(_class_name=kind, **config), n=n, steps=steps, points=points,
                      init_noise_sigma=float(scheduler.init_noise_sigma),
                      timesteps_sum=float(scheduler.timesteps.double().sum())))


for kind, spacing, n in itertools.product(("EulerDiscreteScheduler", "DDIMScheduler"),
                                          ("leading", "linspace", "trailing"), (1, 2, 7, 25, 30, 48, 61, 96, 103, 999)):
    case(kind, n, timestep_spacing=spacing)
for spacing, n in itertools.product(("leading", "linspace", "trailing"), (2, 10, 30, 61)):
    case("EulerDiscreteScheduler", n, timestep_spacing=spacing, use_karras_sigmas=True)
for prediction in ("v_prediction", "sample"):
    case("EulerDiscreteScheduler", 20, timestep_spacing="leading", prediction_type=prediction)
    case("DDIMScheduler", 20, timestep_spacing="leading", prediction_type=prediction)
    case("DDIMScheduler", 20, timestep_spacing="leading", prediction_type=prediction, clip_sample=False)
case("DDIMScheduler", 20, timestep_spacing="leading", clip_sample=False, set_alpha_to_one=False)
case("DDIMScheduler", 20, timestep_spacing="leading", clip_sample_range=2.5)
case("EulerDiscreteScheduler", 20, timestep_spacing="trailing", rescale_betas_zero_snr=True, prediction_type="v_prediction")
case("DDIMScheduler", 20, timestep_spacing="trailing", rescale_betas_zero_snr=True, prediction_type="v_prediction", clip_sample=False)
case("EulerDiscreteScheduler", 20, timestep_spacing="leading", final_sigmas_type="sigma_min")
case("EulerDiscreteScheduler", 20, beta_schedule="linear")
case("DDIMScheduler", 20, beta_schedule="squaredcos_cap_v2")
case("EulerDiscreteScheduler", 20, beta_schedule=None, beta_start=None, beta_end=None, steps_offset=None)
case("DDIMScheduler", 20, beta_schedule=None, beta_start=None, beta_end=None, steps_offset=None)
print("[" + ",\n".join(json.dumps(c) for c in cases) + "]")
