//! A loaded model, as Python calls it.

use dolly_core::{
    CancelToken, GenerateOptions, Instruction, Pipeline, Prompt, RequestOptions, Score, Tokenizer,
};
use numpy::{IntoPyArray, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::errors::Outcome;
use crate::options::{self, convert};
use crate::results::{self, GenerationParts};
use crate::stream::NativeStream;
use crate::wait::{finish, interruptible};

/// Instructions with their contexts.
type Row = (String, Option<String>);
/// `(token_ids, logprobs, sum, perplexity)`.
type ScoreParts = (Vec<u32>, Vec<f32>, f64, f64);

/// A loaded model.
#[pyclass(frozen, module = "dolly_rs._native", name = "Pipeline")]
pub(crate) struct NativePipeline(Option<Pipeline>);

impl NativePipeline {
    pub fn new(pipeline: Pipeline) -> Self {
        Self(Some(pipeline))
    }

    fn get(&self) -> Outcome<&Pipeline> {
        Ok(self.0.as_ref().ok_or(dolly_core::Error::Closed)?)
    }
}

impl Drop for NativePipeline {
    /// Waits for the engine's last step, without the interpreter where there still is one.
    fn drop(&mut self) {
        let mut pipeline = self.0.take();
        let _ = Python::try_attach(|py| py.detach(|| drop(pipeline.take())));
    }
}

/// A prompt for `complete`, owned: text or ids.
enum OwnedPrompt {
    Text(String),
    Ids(Vec<u32>),
}

impl OwnedPrompt {
    fn read(prompt: &Bound<'_, PyAny>) -> Outcome<Self> {
        if prompt.is_instance_of::<PyString>() {
            return Ok(Self::Text(prompt.extract()?));
        }
        Ok(Self::Ids(convert("prompt", prompt)?))
    }

    fn borrow(&self) -> Prompt<'_> {
        match self {
            Self::Text(text) => Prompt::Text(text),
            Self::Ids(ids) => Prompt::Ids(ids),
        }
    }
}

fn instruction((text, context): Row) -> Instruction {
    let instruction = Instruction::new(text);
    match context {
        Some(context) => instruction.context(context),
        None => instruction,
    }
}

fn request(deadline: Option<f64>) -> Outcome<(RequestOptions, CancelToken)> {
    let token = CancelToken::new();
    let deadline = options::deadline(deadline)?;
    let cancel = Some(token.clone());
    Ok((RequestOptions { deadline, cancel }, token))
}

fn cancellable(from: &Bound<'_, PyAny>) -> Outcome<(GenerateOptions, CancelToken)> {
    let token = CancelToken::new();
    let options = GenerateOptions { cancel: Some(token.clone()), ..options::read(from)? };
    Ok((options, token))
}

#[pymethods]
impl NativePipeline {
    fn generate(
        &self,
        py: Python<'_>,
        instruction: String,
        context: Option<String>,
        options: &Bound<'_, PyAny>,
    ) -> Outcome<GenerationParts> {
        let (pipeline, options) = (self.get()?, options::read(options)?);
        let row = self::instruction((instruction, context));
        let stream = py.detach(|| pipeline.stream(row, &options))?;
        finish(py, stream).map(results::generation)
    }

    fn stream(
        &self,
        py: Python<'_>,
        instruction: String,
        context: Option<String>,
        options: &Bound<'_, PyAny>,
    ) -> Outcome<NativeStream> {
        let pipeline = self.get()?;
        let (options, token) = cancellable(options)?;
        let row = self::instruction((instruction, context));
        let stream = py.detach(|| pipeline.stream(row, &options))?;
        Ok(NativeStream::new(stream, token))
    }

    /// One row per answer: parts, or the exception object of a row that failed.
    fn generate_batch(
        &self,
        py: Python<'_>,
        instructions: Vec<Row>,
        options: &Bound<'_, PyAny>,
    ) -> Outcome<Vec<Py<PyAny>>> {
        let pipeline = self.get()?;
        let (options, token) = cancellable(options)?;
        let rows: Vec<_> = instructions.into_iter().map(instruction).collect();
        let done = interruptible(py, &token, || pipeline.generate_batch(&rows, &options))?;
        results::rows(py, done)
    }

    fn complete(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        options: &Bound<'_, PyAny>,
    ) -> Outcome<GenerationParts> {
        let (pipeline, options) = (self.get()?, options::read(options)?);
        let prompt = OwnedPrompt::read(prompt)?;
        let stream = py.detach(|| pipeline.complete_stream(prompt.borrow(), &options))?;
        finish(py, stream).map(results::generation)
    }

    /// One row per prompt: parts, or the exception object of a row that failed.
    fn complete_batch(
        &self,
        py: Python<'_>,
        prompts: Vec<Bound<'_, PyAny>>,
        options: &Bound<'_, PyAny>,
    ) -> Outcome<Vec<Py<PyAny>>> {
        let pipeline = self.get()?;
        let (options, token) = cancellable(options)?;
        let prompts: Vec<_> = prompts.iter().map(OwnedPrompt::read).collect::<Outcome<_>>()?;
        let done = interruptible(py, &token, || {
            let submit = |prompt: &OwnedPrompt| pipeline.complete_stream(prompt.borrow(), &options);
            let streams: Vec<_> = prompts.iter().map(submit).collect();
            streams.into_iter().map(|stream| stream?.finish()).collect()
        })?;
        results::rows(py, done)
    }

    fn score(
        &self,
        py: Python<'_>,
        instruction: String,
        context: Option<String>,
        response: &str,
        deadline: Option<f64>,
    ) -> Outcome<ScoreParts> {
        let pipeline = self.get()?;
        let (request, token) = request(deadline)?;
        let row = self::instruction((instruction, context));
        let work = || pipeline.score_with(row, response, &request);
        let Score { token_ids, logprobs, sum, perplexity, .. } = interruptible(py, &token, work)??;
        Ok((token_ids, logprobs, sum, perplexity))
    }

    /// `(answer, probability, logprob)` in the order of `answers`.
    fn classify(
        &self,
        py: Python<'_>,
        instruction: String,
        context: Option<String>,
        answers: Vec<String>,
        deadline: Option<f64>,
    ) -> Outcome<Vec<(String, f64, f64)>> {
        let pipeline = self.get()?;
        let (request, token) = request(deadline)?;
        let row = self::instruction((instruction, context));
        let work = || pipeline.classify_with(row, &answers, &request);
        let found = interruptible(py, &token, work)??;
        Ok(found.into_iter().map(|one| (one.answer, one.probability, one.logprob)).collect())
    }

    /// `(tokens, vocab)` float32.
    fn logits<'py>(
        &self,
        py: Python<'py>,
        token_ids: &Bound<'py, PyAny>,
        deadline: Option<f64>,
    ) -> Outcome<Bound<'py, PyArray2<f32>>> {
        let pipeline = self.get()?;
        let (request, token) = request(deadline)?;
        let ids: Vec<u32> = convert("token_ids", token_ids)?;
        let values = interruptible(py, &token, || pipeline.logits_with(&ids, &request))??;
        let columns = values.len() / ids.len().max(1);
        Ok(values.into_pyarray(py).reshape([ids.len(), columns])?)
    }

    #[getter]
    fn tokenizer(&self) -> Outcome<NativeTokenizer> {
        Ok(NativeTokenizer(self.get()?.tokenizer().clone()))
    }

    /// The hyper-parameters by the core's names.
    #[getter]
    fn config<'py>(&self, py: Python<'py>) -> Outcome<Bound<'py, PyDict>> {
        Ok(results::config(py, self.get()?.config())?)
    }

    /// Bytes held.
    #[getter]
    fn memory<'py>(&self, py: Python<'py>) -> Outcome<Bound<'py, PyDict>> {
        let memory = self.get()?.memory();
        let dict = PyDict::new(py);
        dict.set_item("weights", memory.weights)?;
        dict.set_item("cache", memory.cache)?;
        dict.set_item("workspace", memory.workspace)?;
        dict.set_item("prefix_cache", memory.prefix_cache)?;
        dict.set_item("cache_per_token", memory.cache_per_token)?;
        Ok(dict)
    }

    #[getter]
    fn id(&self) -> Outcome<&str> {
        Ok(self.get()?.id())
    }

    #[getter]
    fn weight_format(&self) -> Outcome<&'static str> {
        Ok(self.get()?.weight_format().name())
    }

    #[getter]
    fn context_length(&self) -> Outcome<usize> {
        Ok(self.get()?.context_length())
    }

    #[getter]
    fn is_closed(&self) -> bool {
        self.0.as_ref().is_none_or(Pipeline::is_closed)
    }

    /// Ends running requests and frees the weights; waits for the engine's last step.
    fn close(&self, py: Python<'_>) -> Outcome<()> {
        let pipeline = self.get()?;
        py.detach(|| pipeline.close());
        Ok(())
    }
}

/// The tokenizer of a loaded model; lives on without it.
#[pyclass(frozen, module = "dolly_rs._native", name = "Tokenizer")]
pub(crate) struct NativeTokenizer(pub(crate) Tokenizer);

#[pymethods]
impl NativeTokenizer {
    fn encode(&self, py: Python<'_>, text: &str, special: bool) -> Outcome<Vec<u32>> {
        Ok(py.detach(|| self.0.encode(text, special))?)
    }

    fn decode(
        &self,
        py: Python<'_>,
        token_ids: &Bound<'_, PyAny>,
        skip_special_tokens: bool,
    ) -> Outcome<String> {
        let ids: Vec<u32> = convert("token_ids", token_ids)?;
        Ok(py.detach(|| self.0.decode(&ids, skip_special_tokens))?)
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }
}
