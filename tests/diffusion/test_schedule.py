"""Schedules: reference values, closed forms and invalid options."""

import math

import numpy as np
import pytest
import torch

from ddpm.diffusion import Schedule, cosine, linear, sigmoid
from ddpm.errors import ConfigError
from tests.reference_cases import load_case

SCHEDULES = [linear, cosine, sigmoid]


@pytest.mark.parametrize("num_steps", [1000, 4000])
def test_linear_matches_the_reference(num_steps):
    _, arrays = load_case("iddpm_schedules")
    index, schedule = arrays[f"linear_{num_steps}_idx"], linear(num_steps=num_steps)
    betas, alpha_bar = schedule.betas.numpy()[index], schedule.alpha_bar.numpy()[index]
    np.testing.assert_allclose(betas, arrays[f"linear_{num_steps}_betas"], rtol=1e-12)
    expected = arrays[f"linear_{num_steps}_alphas_cumprod"]
    np.testing.assert_allclose(alpha_bar, expected, rtol=1e-12)


@pytest.mark.parametrize("num_steps", [10, 1000, 4000])
def test_cosine_matches_the_reference(num_steps):
    _, arrays = load_case("iddpm_schedules")
    index = arrays[f"cosine_{num_steps}_idx"]
    schedule = cosine(num_steps=num_steps)
    betas, alpha_bar = schedule.betas.numpy()[index], schedule.alpha_bar.numpy()[index]
    expected = arrays[f"cosine_{num_steps}_alphas_cumprod"]
    np.testing.assert_allclose(betas, arrays[f"cosine_{num_steps}_betas"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(alpha_bar, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(alpha_bar, expected, rtol=1e-9)  # the last is a product of 4000


@pytest.mark.parametrize("case", ["v_sigmoid", "x0_linear", "noise_cosine_minsnr"])
def test_alpha_bar_matches_denoising_diffusion_pytorch(case):
    meta, arrays = load_case(f"unet_process_{case}")
    make = {"linear": linear, "cosine": cosine, "sigmoid": sigmoid}[meta["schedule"]]
    alpha_bar = make(num_steps=meta["timesteps"]).alpha_bar.float().numpy()[arrays["t"]]
    np.testing.assert_allclose(alpha_bar, arrays["alphas_cumprod"], rtol=2e-7)


def test_cosine_matches_its_formula():
    T, s = 200, 0.008
    time = (np.arange(T + 1) / T + s) / (1 + s) * math.pi / 2
    curve = np.cos(time) ** 2 / np.cos(time[0]) ** 2
    schedule = cosine(num_steps=T)
    np.testing.assert_allclose(schedule.alpha_bar.numpy()[:-1], curve[1:-1], rtol=1e-11)
    assert schedule.betas[-1].item() == 0.999


@pytest.mark.parametrize("max_beta", [0.5, 0.9, 0.9999])
def test_betas_of_the_cosine_are_capped(max_beta):
    free, capped = (cosine(num_steps=100, max_beta=cap) for cap in (0.99999999, max_beta))
    np.testing.assert_array_equal(capped.betas.numpy(), np.minimum(free.betas.numpy(), max_beta))
    assert (capped.betas == max_beta).any()
    np.testing.assert_allclose(capped.alpha_bar, np.cumprod(1 - capped.betas.numpy()), rtol=1e-12)
    assert cosine(num_steps=100).betas[-1] == 0.999


def test_sigmoid_is_symmetric_about_its_middle_and_ends_at_the_cap():
    alpha_bar = sigmoid(num_steps=100).alpha_bar.numpy()
    assert alpha_bar[49] == pytest.approx(0.5, abs=1e-6)
    np.testing.assert_allclose(alpha_bar[:49] + alpha_bar[98:49:-1], 1, atol=1e-6)
    assert alpha_bar[99] / alpha_bar[98] == pytest.approx(1e-3, rel=1e-9)


@pytest.mark.parametrize(("start", "end", "tau"), [(-3, 3, 0.5), (0.0, 3.0, 0.3), (-4.0, 1.0, 1.1)])
def test_sigmoid_matches_its_formula(start, end, tau):
    T = 50

    def logistic(value):
        return 1 / (1 + math.exp(-value / tau))

    curve = [(logistic(end) - logistic(start + (end - start) * i / T)) for i in range(T + 1)]
    expected = np.array(curve[1:-1]) / curve[0]
    alpha_bar = sigmoid(num_steps=T, start=start, end=end, tau=tau).alpha_bar.numpy()
    np.testing.assert_allclose(alpha_bar[:-1], expected, rtol=0, atol=3e-7)


@pytest.mark.parametrize("num_steps", [21, 100, 1000, 2500])
def test_linear_scales_its_ends_with_1000_over_T(num_steps):
    betas = linear(num_steps=num_steps, beta_start=2e-4, beta_end=0.01).betas
    assert betas[0].item() == pytest.approx(0.2 / num_steps, rel=1e-12)
    assert betas[-1].item() == pytest.approx(10 / num_steps, rel=1e-12)
    np.testing.assert_allclose(np.diff(betas.numpy(), 2), 0, atol=1e-15)


@pytest.mark.parametrize("make", [cosine, sigmoid])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 17, 1000])
def test_cosine_and_sigmoid_accept_any_number_of_steps(make, num_steps):
    schedule = make(num_steps=num_steps)
    alpha_bar = schedule.alpha_bar.numpy()
    assert schedule.num_steps == len(alpha_bar) == num_steps
    assert np.all(np.diff(alpha_bar, prepend=1.0) < 0)
    assert 0 < alpha_bar[-1] <= 0.00101


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda: linear(num_steps=10),
            "num_steps=10: beta at step 5 is 1.116, outside (0, 1); use more steps, "
            "other schedule parameters, or schedule=cosine",
        ),
        (
            lambda: linear(num_steps=20),
            "num_steps=20: beta at step 19 is 1, outside (0, 1); use more steps, "
            "other schedule parameters, or schedule=cosine",
        ),
        (
            lambda: linear(num_steps=1),
            "num_steps=1: beta at step 0 is 20, outside (0, 1); use more steps, "
            "other schedule parameters, or schedule=cosine",
        ),
        (
            lambda: linear(num_steps=1000, beta_start=0.0),
            "num_steps=1000: beta at step 0 is 0, outside (0, 1); use more steps, "
            "other schedule parameters, or schedule=cosine",
        ),
        (
            lambda: Schedule(torch.tensor([0.1, float("nan"), 0.2])),
            "num_steps=3: beta at step 1 is nan, outside (0, 1); use more steps, "
            "other schedule parameters, or schedule=cosine",
        ),
        (lambda: Schedule(torch.zeros(0)), "num_steps=0: needs at least 1"),
        (lambda: linear(num_steps=0), "num_steps=0: needs at least 1 step"),
        (lambda: cosine(num_steps=0), "num_steps=0: needs at least 1 step"),
        (lambda: sigmoid(num_steps=-5), "num_steps=-5: needs at least 1 step"),
        (lambda: sigmoid(start=1.0, end=1.0), "start=1.0: must be below end=1.0"),
        (lambda: sigmoid(tau=0.0), "tau=0.0: must be above 0"),
        (lambda: cosine(offset=-0.1), "offset=-0.1: must be 0 or above"),
        (lambda: cosine(max_beta=0.0), "max_beta=0.0: must be between 0 and 1"),
        (lambda: cosine(max_beta=1.0), "max_beta=1.0: must be between 0 and 1"),
    ],
)
def test_invalid_options_are_rejected(make, line):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == line


@pytest.mark.parametrize("num_steps", [21, 22, 50])
def test_linear_accepts_the_documented_minimum_of_steps(num_steps):
    assert linear(num_steps=num_steps).betas.max() < 1


@pytest.mark.parametrize("make", SCHEDULES)
def test_step_minus_one_is_clean_data(make):
    schedule = make(num_steps=30)
    assert schedule.alpha_bar_at(-1) == 1
    assert schedule.signal_noise(-1) == (1, 0)
    mixed = schedule.alpha_bar_at(torch.tensor([-1, 0, 29]))
    assert mixed.dtype == torch.float64
    expected = [1, schedule.alpha_bar[0].item(), schedule.alpha_bar[29].item()]
    assert mixed.tolist() == expected


@pytest.mark.parametrize("spatial", [(), (5,), (5, 6), (2, 5, 6)])
def test_coefficients_broadcast_over_the_batch_axis_only(spatial):
    schedule = cosine(num_steps=10)
    t = torch.tensor([0, 4, 9])
    like = torch.zeros(3, 3, *spatial)  # as many channels as samples: a wrong axis would fit too
    a, s = schedule.scales(t, like)
    assert a.shape == s.shape == (3, *[1] * (1 + len(spatial)))
    scaled = (like + 1) * a
    for row, step in enumerate([0, 4, 9]):
        expected = torch.full(scaled[row].shape, math.sqrt(schedule.alpha_bar[step]))
        assert torch.equal(scaled[row], expected)


@pytest.mark.parametrize("make", [linear, cosine, sigmoid])
def test_coefficients_are_rounded_once(make):
    schedule = make(num_steps=1000)
    t = torch.arange(1000)
    a, s = schedule.scales(t, torch.zeros(1000, 1))
    assert a.dtype == s.dtype == torch.float32
    # 1 - alpha_bar without its cancellation: by logarithms.
    left = -np.expm1(np.cumsum(np.log1p(-schedule.betas.numpy())))
    np.testing.assert_allclose(s[:, 0].double().numpy(), np.sqrt(left), rtol=1e-7)
    np.testing.assert_allclose(
        a[:, 0].double().numpy(), np.sqrt(schedule.alpha_bar.numpy()), rtol=1e-7
    )


def test_noise_scale_is_accurate_where_float32_alpha_bar_is_1():
    schedule = linear(num_steps=1000, beta_start=1e-8)
    _, s = schedule.scales(torch.tensor([0]), torch.zeros(1, 1))
    assert s.item() == pytest.approx(1e-4, rel=1e-7)
    assert (1 - schedule.alpha_bar.float()[0]).item() == 0


@pytest.mark.parametrize("make", SCHEDULES)
def test_signal_and_noise_of_a_sampler_are_those_of_training(make):
    schedule = make(num_steps=40)
    t = torch.arange(40)
    a, s = schedule.scales(t, torch.zeros(40, 1))
    pairs = np.array([schedule.signal_noise(i) for i in range(40)])
    np.testing.assert_allclose(pairs[:, 0], a[:, 0].numpy(), rtol=1e-7)
    np.testing.assert_allclose(pairs[:, 1], s[:, 0].numpy(), rtol=1e-7)
    snr = (pairs[:, 0] / pairs[:, 1]) ** 2
    np.testing.assert_allclose(schedule.snr(t).numpy(), snr, rtol=1e-12)


REAL = {
    "linear": linear(num_steps=1000),
    "cosine": cosine(num_steps=1000),
    "sigmoid": sigmoid(num_steps=40),
    "zero_terminal": cosine(num_steps=100, zero_terminal_snr=True),
    "two": cosine(num_steps=2),
}


def real_times(schedule):
    """Return real times of all kinds: whole, near to whole, between, and the ends."""
    last = schedule.num_steps - 1
    generator = np.random.default_rng(0)
    return [0, last, *range(0, last, max(last // 7, 1)), 1e-9, *generator.uniform(0, last, 50)]


@pytest.mark.parametrize("name", REAL)
def test_whole_times_are_exact(name):
    schedule = REAL[name]
    for t in range(schedule.num_steps):
        alpha_bar = schedule.alpha_bar[t].item()
        for time in (t, float(t), np.float64(t)):
            assert schedule.alpha(time) == math.sqrt(alpha_bar)
            assert schedule.sigma(time) == math.sqrt(1 - alpha_bar)
            assert schedule.signal_noise(time) == (schedule.alpha(time), schedule.sigma(time))
    t = torch.arange(schedule.num_steps)
    for times in (t, t.double(), t.float()):
        assert torch.equal(schedule.alpha_bar_at(times), schedule.alpha_bar)


@pytest.mark.parametrize("name", REAL)
def test_numbers_and_tensors_of_real_times_agree(name):
    schedule = REAL[name]
    times = [-1, *real_times(schedule)]
    t = torch.tensor(times, dtype=torch.float64)
    for method in (schedule.alpha, schedule.sigma, schedule.log_snr):
        numbers, tensor = [method(time) for time in times], method(t)
        assert all(type(number) is float for number in numbers)
        assert tensor.dtype == torch.float64
        np.testing.assert_allclose(tensor.numpy(), numbers, rtol=1e-12, atol=1e-12)
    squares = schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2
    np.testing.assert_allclose(squares.numpy(), 1, rtol=1e-15)
    a, s = schedule.scales(t, torch.zeros(len(times), 2, 3))
    assert a.shape == s.shape == (len(times), 1, 1)
    torch.testing.assert_close(a.flatten(), schedule.alpha(t).float(), rtol=0, atol=0)
    torch.testing.assert_close(s.flatten(), schedule.sigma(t).float(), rtol=0, atol=0)


@pytest.mark.parametrize("name", REAL)
def test_log_snr_is_linear_between_timesteps(name):
    schedule = REAL[name]
    for t in range(schedule.num_steps - 1):
        low, high = schedule.log_snr(t), schedule.log_snr(t + 1)
        assert low > high
        if math.isinf(high):
            continue
        for part in (0.25, 0.5, 0.9):
            expected = low + part * (high - low)
            assert schedule.log_snr(t + part) == pytest.approx(expected, rel=1e-11, abs=1e-11)


def test_alpha_is_linear_before_a_timestep_without_signal():
    schedule = REAL["zero_terminal"]
    assert schedule.log_snr(99) == -math.inf
    assert schedule.log_snr(torch.tensor([99.0])).item() == -math.inf
    for part in (0.1, 0.5, 0.999):
        expected = (1 - part) * schedule.alpha(98)
        assert schedule.alpha(98 + part) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("name", REAL)
def test_time_is_the_inverse_of_log_snr(name):
    schedule = REAL[name]
    last = schedule.num_steps - 1
    for t in real_times(schedule):
        near = pytest.approx(t, rel=1e-12, abs=1e-12 * schedule.num_steps)
        assert schedule.time(schedule.log_snr(t)) == near
    for t in range(schedule.num_steps):
        time = schedule.time(schedule.log_snr(t))
        assert time == t and type(time) is int
    assert schedule.time(math.inf) == schedule.time(schedule.log_snr(0) + 1) == 0
    assert schedule.time(-math.inf) == last
    if not schedule.zero_terminal_snr:
        assert schedule.time(schedule.log_snr(last) - 1) == last


@pytest.mark.parametrize("name", REAL)
def test_a_table_of_alpha_bar_makes_the_same_schedule(name):
    schedule = REAL[name]
    other = Schedule.from_alpha_bar(schedule.alpha_bar)
    assert torch.equal(other.alpha_bar, schedule.alpha_bar)
    assert other.zero_terminal_snr == schedule.zero_terminal_snr
    torch.testing.assert_close(other.betas, schedule.betas, rtol=1e-12, atol=1e-12)
