//! What a model was made of: hashes and licences of weights, tokenizer and data, and the chain back.
