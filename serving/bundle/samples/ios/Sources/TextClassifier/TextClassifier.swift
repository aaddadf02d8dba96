// The model with its tokeniser: text in, label and probability out.

import Foundation
import OnnxRuntimeBindings

/// `probability` is nil for a regression model, whose number is `score`.
public struct Answer: Sendable {
    public let label: String
    public let probability: Double?
    public let score: Float
}

public enum ClassifierError: Error, CustomStringConvertible {
    /// This file of the folder `model`, or the folder, is missing from the package.
    case missingFile(String)
    /// The model's tokenizer is not WordPiece: call `classify(ids:)`.
    case noTokenizer

    public var description: String {
        switch self {
        case .missingFile(let name): return "\(name) is missing from the package"
        case .noTokenizer: return "this model's tokenizer is not WordPiece; call classify(ids:)"
        }
    }
}

/// What the sample reads of preprocessing.json.
private struct About: Decodable, Sendable {
    let kind: String
    let labels: [String]
    let inputs: [String]
    let tokenizer: WordPiece.Settings?
}

/// Reads its files once; may be used from any thread, and should not be used on the main one. (Unchecked: ONNX Runtime's
/// classes do not say that they are Sendable, but a session may run on several threads at once.)
public final class TextClassifier: @unchecked Sendable {
    private let about: About
    private let environment: ORTEnv
    private let session: ORTSession
    private let tokenizer: WordPiece?

    public init(threads: Int32 = 2) throws {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        about = try decoder.decode(About.self, from: TextClassifier.data("preprocessing.json"))
        if let settings = about.tokenizer {
            let special = try TextClassifier.specialTokens()
            tokenizer = WordPiece(
                settings: settings, specialTokens: special,
                vocabulary: try TextClassifier.data("vocab.txt"), characters: try TextClassifier.data("unicode.txt"))
        } else {
            tokenizer = nil
        }
        environment = try ORTEnv(loggingLevel: ORTLoggingLevel.warning)
        let options = try ORTSessionOptions()
        try options.setIntraOpNumThreads(threads)
        session = try ORTSession(
            env: environment, modelPath: TextClassifier.url("model.onnx").path, sessionOptions: options)
    }

    /// The answer for a text or a pair.
    public func classify(_ text: String, pair: String? = nil) throws -> Answer {
        guard let tokenizer = tokenizer else { throw ClassifierError.noTokenizer }
        let encoded = tokenizer.encode(text, pair: pair)
        return try run(ids: encoded.ids, types: encoded.types)
    }

    /// The answer for token ids that were made elsewhere.
    public func classify(ids: [Int64]) throws -> Answer {
        try run(ids: ids, types: [Int64](repeating: 0, count: ids.count))
    }

    private func run(ids: [Int64], types: [Int64]) throws -> Answer {
        let rows = [
            "input_ids": ids,
            "attention_mask": [Int64](repeating: 1, count: ids.count),
            "token_type_ids": types
        ]
        var feeds: [String: ORTValue] = [:]
        for name in about.inputs {
            feeds[name] = try TextClassifier.tensor(rows[name]!)
        }
        let found = try session.run(withInputs: feeds, outputNames: ["logits"], runOptions: nil)
        return answer(try TextClassifier.floats(found["logits"]!))
    }

    private func answer(_ logits: [Float]) -> Answer {
        if about.kind == "regression" {
            return Answer(label: "score", probability: nil, score: logits[0])
        }
        let best = logits.indices.max { logits[$0] < logits[$1] }!  // the first one of equals
        let top = logits[best]
        let sum = logits.reduce(0.0) { $0 + exp(Double($1 - top)) }
        return Answer(label: about.labels[best], probability: 1 / sum, score: top)
    }

    private static func tensor(_ row: [Int64]) throws -> ORTValue {
        let data = row.withUnsafeBytes { NSMutableData(bytes: $0.baseAddress, length: $0.count) }
        return try ORTValue(
            tensorData: data, elementType: ORTTensorElementDataType.int64,
            shape: [1, NSNumber(value: row.count)])
    }

    /// A copy: the bytes are those of ONNX Runtime, which frees them together with `value`.
    private static func floats(_ value: ORTValue) throws -> [Float] {
        try withExtendedLifetime(value) {
            let data = try value.tensorData()
            var row = [Float](repeating: 0, count: data.length / MemoryLayout<Float>.size)
            row.withUnsafeMutableBytes { data.getBytes($0.baseAddress!, length: $0.count) }
            return row
        }
    }

    private static func url(_ name: String) throws -> URL {
        guard let folder = Bundle.module.url(forResource: "model", withExtension: nil) else {
            throw ClassifierError.missingFile("model")
        }
        return folder.appendingPathComponent(name)
    }

    private static func data(_ name: String) throws -> Data {
        guard let found = try? Data(contentsOf: url(name)) else { throw ClassifierError.missingFile(name) }
        return found
    }

    /// Names as they stand in preprocessing.json: a decoder with a key strategy would change them.
    private static func specialTokens() throws -> [String: Int64] {
        struct Names: Decodable {
            struct Tokenizer: Decodable { let special_tokens: [String: Int64] }
            let tokenizer: Tokenizer
        }
        return try JSONDecoder().decode(Names.self, from: data("preprocessing.json")).tokenizer.special_tokens
    }
}
