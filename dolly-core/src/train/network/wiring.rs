//! Which parameters make up which part of the network.

use super::Trained;
use super::parameters::{Builder, Normals, Parameter};
use crate::error::{Error, Result};
use crate::model::Config;
use crate::train::LoraConfig;

/// Weight and bias of a layer norm, as indices of parameters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Norm {
    pub weight: usize,
    pub bias: usize,
}

/// A linear layer, as indices of parameters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Linear {
    pub weight: usize,
    pub bias: Option<usize>,
    pub adapter: Option<Adapter>,
    pub outputs: usize,
    pub inputs: usize,
}

/// A low-rank adapter beside a linear layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Adapter {
    /// `(rank, inputs)`.
    pub a: usize,
    /// `(outputs, rank)`.
    pub b: usize,
    pub rank: usize,
    pub scale: f32,
    pub dropout: f32,
    /// Number of this adapter: its own noise.
    pub site: u64,
}

/// One transformer block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layer {
    pub input_norm: Norm,
    pub post_attention_norm: Norm,
    pub query_key_value: Linear,
    pub dense: Linear,
    pub dense_h_to_4h: Linear,
    pub dense_4h_to_h: Linear,
}

/// The network as indices of parameters.
#[derive(Debug)]
pub(super) struct Wiring {
    pub embedding: usize,
    pub layers: Vec<Layer>,
    pub final_norm: Norm,
    pub head: Linear,
}

/// Makes the parameters of a network, all zeros, in the order of `Config::tensors`, adapters last.
pub(super) fn build(config: &Config, trained: &Trained) -> Result<(Wiring, Vec<Parameter>)> {
    let specs = config.tensors()?;
    let lora = match trained {
        Trained::Adapters(lora) => Some(lora),
        Trained::All | Trained::Nothing => None,
    };
    let builder = Builder::new(specs.len())?;
    let mut maker = Maker { builder, lora, all: *trained == Trained::All, adapted: Vec::new() };
    let (hidden, inner, vocab) = (config.hidden_size, config.intermediate_size, config.vocab_size);
    let embedding = maker.tensor("gpt_neox.embed_in.weight".into(), &[vocab, hidden])?;
    let mut layers = Vec::new();
    for layer in 0..config.num_hidden_layers {
        let name = |part: &str| format!("gpt_neox.layers.{layer}.{part}");
        let bias = config.attention_bias;
        layers.push(Layer {
            input_norm: maker.norm(&name("input_layernorm"), hidden)?,
            post_attention_norm: maker.norm(&name("post_attention_layernorm"), hidden)?,
            query_key_value: maker.linear(
                &name("attention.query_key_value"),
                (3 * hidden, hidden),
                bias,
            )?,
            dense: maker.linear(&name("attention.dense"), (hidden, hidden), bias)?,
            dense_h_to_4h: maker.linear(&name("mlp.dense_h_to_4h"), (inner, hidden), true)?,
            dense_4h_to_h: maker.linear(&name("mlp.dense_4h_to_h"), (hidden, inner), true)?,
        });
    }
    let final_norm = maker.norm("gpt_neox.final_layer_norm", hidden)?;
    let mut head =
        Linear { weight: embedding, bias: None, adapter: None, outputs: vocab, inputs: hidden };
    if !config.tie_word_embeddings {
        head = maker.linear("embed_out", (vocab, hidden), false)?;
    }
    maker.finish(Wiring { embedding, layers, final_norm, head })
}

struct Maker<'a> {
    builder: Builder,
    lora: Option<&'a LoraConfig>,
    /// Whether the weights themselves are trained.
    all: bool,
    /// Names of the linear layers, those with an adapter marked.
    adapted: Vec<(String, bool)>,
}

impl Maker<'_> {
    fn tensor(&mut self, name: String, shape: &[usize]) -> Result<usize> {
        self.builder.add(name, shape, self.all)
    }

    fn norm(&mut self, name: &str, width: usize) -> Result<Norm> {
        let weight = self.tensor(format!("{name}.weight"), &[width])?;
        Ok(Norm { weight, bias: self.tensor(format!("{name}.bias"), &[width])? })
    }

    fn linear(
        &mut self,
        name: &str,
        (outputs, inputs): (usize, usize),
        bias: bool,
    ) -> Result<Linear> {
        let weight = self.tensor(format!("{name}.weight"), &[outputs, inputs])?;
        let bias = match bias {
            true => Some(self.tensor(format!("{name}.bias"), &[outputs])?),
            false => None,
        };
        let has_adapter = self.lora.is_some_and(|lora| lora.matches(name));
        let adapter = match self.lora {
            Some(lora) if has_adapter => {
                let of = |half: &str| format!("base_model.model.{name}.lora_{half}.weight");
                Some(Adapter {
                    a: self.builder.add(of("A"), &[lora.rank, inputs], true)?,
                    b: self.builder.add(of("B"), &[outputs, lora.rank], true)?,
                    rank: lora.rank,
                    scale: lora.scale(),
                    dropout: lora.dropout,
                    site: self.adapted.len() as u64,
                })
            }
            _ => None,
        };
        self.adapted.push((name.to_owned(), has_adapter));
        Ok(Linear { weight, bias, adapter, outputs, inputs })
    }

    /// Refuses targets that match no layer.
    fn finish(self, wiring: Wiring) -> Result<(Wiring, Vec<Parameter>)> {
        for target in self.lora.iter().flat_map(|lora| &lora.targets) {
            let alone = LoraConfig { targets: vec![target.clone()], ..LoraConfig::default() };
            if !self.adapted.iter().any(|(name, _)| alone.matches(name)) {
                return Err(Error::option(
                    "lora.targets",
                    format!("{target:?}, which matches no layer,"),
                    "query_key_value, dense, dense_h_to_4h, dense_4h_to_h or embed_out",
                ));
            }
        }
        Ok((wiring, self.builder.parameters))
    }
}

/// Initial values of adapters, as PEFT draws them: A uniform in ±1/√inputs, B zero.
pub(super) fn initialise_adapters(parameters: &mut [Parameter], numbers: &mut Normals) {
    for parameter in parameters.iter_mut().filter(|p| p.name.ends_with(".lora_A.weight")) {
        let bound = 1.0 / (parameter.shape.last().copied().unwrap_or(1).max(1) as f64).sqrt();
        parameter.values.fill_with(|| ((2.0 * numbers.uniform() - 1.0) * bound) as f32);
    }
}
