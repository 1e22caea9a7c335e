//! AdamW and the norm of the gradients on the device, and what travels to and from the host.

use candle_core::{D, DType, Device, Tensor};

use super::Weight;
use crate::error::{Error, Result};
use crate::train::network::Parameter;
use crate::train::optimizer::{AdamW, Update};

/// A parameter's values, or its moments, on the device.
pub(super) fn upload(values: &[f32], parameter: &Parameter, device: &Device) -> Result<Tensor> {
    let bytes = 4 * values.len() as u64;
    let tensor = Tensor::from_slice(values, parameter.shape.as_slice(), device);
    tensor.map_err(crate::backend::candle::allocating(&parameter.name, bytes))
}

/// Trained weights with their gradients.
fn trained(weights: &[Weight]) -> impl Iterator<Item = Result<(&Weight, &Tensor)>> {
    weights.iter().filter(|weight| weight.trainable).map(|weight| {
        let Weight { name, gradient, .. } = weight;
        let missing =
            || Error::Internal(format!("parameter {name:?} is trained but has no gradient"));
        Ok((weight, gradient.as_ref().ok_or_else(missing)?))
    })
}

/// The Euclidean norm of all gradients together: squares in f32, sums of rows in f64.
///
/// # Errors
/// [`Error::Internal`] naming a trainable parameter without a gradient.
pub(super) fn norm(weights: &[Weight]) -> Result<f64> {
    let sums = trained(weights).map(|weight| {
        let (_, gradient) = weight?;
        let rows = gradient.sqr()?.sum_keepdim(D::Minus1)?.to_dtype(DType::F64)?;
        Ok(rows.sum_all()?)
    });
    let sums = sums.collect::<Result<Vec<Tensor>>>()?;
    if sums.is_empty() {
        return Ok(0.0);
    }
    // One transfer for all.
    let sums: Vec<f64> = Tensor::stack(&sums, 0)?.to_vec1()?;
    Ok(sums.iter().sum::<f64>().sqrt())
}

/// The optimizer's next update, in the formula of [`AdamW`].
///
/// # Errors
/// [`Error::Internal`] naming a trainable parameter without a gradient; nothing is changed then.
pub(super) fn step(
    weights: &mut [Weight],
    optimizer: &mut AdamW,
    rate: f64,
    clip: f32,
) -> Result<()> {
    trained(weights).try_for_each(|weight| weight.map(drop))?;
    let (matrix, vector) = optimizer.next(rate, clip);
    for weight in weights.iter_mut().filter(|weight| weight.trainable) {
        let update = if weight.value.rank() >= 2 { matrix } else { vector };
        weight.step(&update)?;
    }
    Ok(())
}

impl Weight {
    fn step(&mut self, update: &Update) -> Result<()> {
        let Some(gradient) = &self.gradient else { return Ok(()) };
        let zeros = || self.value.zeros_like();
        let [m, v] = match self.moments.take() {
            Some(moments) => moments,
            None => [zeros()?, zeros()?],
        };
        let gradient = times(gradient, update.clip)?;
        let m = match update.one_minus_beta1 < 0.5 {
            true => (&m + times(&(&gradient - &m)?, update.one_minus_beta1)?)?,
            // As torch's `lerp` from a weight of one half on.
            false => (&gradient - times(&(&gradient - &m)?, 1.0 - update.one_minus_beta1)?)?,
        };
        let squares = (times(&gradient, update.one_minus_beta2)? * &gradient)?;
        let v = (times(&v, update.beta2)? + squares)?;
        let correction = Tensor::new(update.correction2_sqrt, v.device())?;
        let denominator = (v.sqrt()?.broadcast_div(&correction)? + f64::from(update.epsilon))?;
        let change = times(&(&m / denominator)?, update.step_size)?;
        self.value = (times(&self.value, update.keep)? - change)?;
        self.moments = Some([m, v]);
        Ok(())
    }
}

fn times(x: &Tensor, factor: f32) -> Result<Tensor> {
    Ok((x * f64::from(factor))?)
}

/// Brings trained weights and their moments to the host.
pub(super) fn fetch(
    weights: &[Weight],
    parameters: &mut [Parameter],
    optimizer: &mut AdamW,
) -> Result<()> {
    let own = weights.iter().zip(parameters).zip(&mut optimizer.moments);
    for ((weight, parameter), moments) in own.filter(|((weight, _), _)| weight.trainable) {
        download(&weight.value, &mut parameter.values)?;
        if let Some([first, second]) = &weight.moments {
            download(first, &mut moments.first)?;
            download(second, &mut moments.second)?;
        }
    }
    Ok(())
}

fn download(from: &Tensor, to: &mut Vec<f32>) -> Result<()> {
    crate::backend::candle::fetch(from, "weights and moments from the device", to)
}

/// Takes trained weights and their moments from the host.
pub(super) fn store(
    weights: &mut [Weight],
    parameters: &[Parameter],
    optimizer: &AdamW,
) -> Result<()> {
    let own = weights.iter_mut().zip(parameters).zip(&optimizer.moments);
    for ((weight, parameter), moments) in own.filter(|((weight, _), _)| weight.trainable) {
        let device = weight.value.device().clone();
        weight.value = upload(&parameter.values, parameter, &device)?;
        let both = [&moments.first, &moments.second];
        let [first, second] = both.map(|values| upload(values, parameter, &device));
        weight.moments = Some([first?, second?]);
    }
    Ok(())
}
