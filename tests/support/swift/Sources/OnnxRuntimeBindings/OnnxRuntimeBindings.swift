// What the sample uses of ONNX Runtime's Objective-C classes, as Swift sees them (objectivec/include/ort_env.h,
// ort_enums.h, ort_session.h, ort_value.h). Nothing is computed: the logits are those of the environment variable
// STAND_IN_LOGITS, and what was fed is written to the file STAND_IN_FEEDS, one line an input.

import Foundation

public enum ORTLoggingLevel: Int32 {
    case verbose, info, warning, error, fatal
}

public enum ORTTensorElementDataType: Int32 {
    case undefined, float, int8, uInt8, int32, uInt32, int64, uInt64, string
}

private func setting(_ name: String) -> String { ProcessInfo.processInfo.environment[name] ?? "" }

open class ORTEnv {
    public init(loggingLevel: ORTLoggingLevel) throws {}
}

open class ORTSessionOptions {
    public init() throws {}

    open func setIntraOpNumThreads(_ intraOpNumThreads: Int32) throws {}
}

open class ORTRunOptions {}

open class ORTValue {
    fileprivate let data: NSMutableData
    fileprivate let type: ORTTensorElementDataType
    fileprivate let shape: [NSNumber]
    private let owner: Bool

    public init(tensorData: NSMutableData, elementType: ORTTensorElementDataType, shape: [NSNumber]) throws {
        data = tensorData
        type = elementType
        self.shape = shape
        owner = false
    }

    /// What a run gives: its memory is overwritten when nobody holds the value any more, as ONNX Runtime frees it.
    fileprivate init(output: [Float]) {
        data = NSMutableData(bytes: output, length: 4 * output.count)
        type = .float
        shape = [1, NSNumber(value: output.count)]
        owner = true
    }

    deinit {
        if owner { memset(data.mutableBytes, 0x7F, data.length) }
    }

    open func tensorData() throws -> NSMutableData { data }
}

open class ORTSession {
    public init(env: ORTEnv, modelPath: String, sessionOptions: ORTSessionOptions?) throws {
        _ = try Data(contentsOf: URL(fileURLWithPath: modelPath))
    }

    open func run(
        withInputs inputs: [String: ORTValue], outputNames: Set<String>, runOptions: ORTRunOptions?
    ) throws -> [String: ORTValue] {
        let lines = inputs.map { name, value -> String in
            let count = value.data.length / MemoryLayout<Int64>.size
            let numbers = [Int64](
                UnsafeBufferPointer(start: value.data.bytes.assumingMemoryBound(to: Int64.self), count: count))
            return "\(name) \(value.type) \(value.shape) \(numbers)\n"
        }
        try Data(lines.sorted().joined().utf8).write(to: URL(fileURLWithPath: setting("STAND_IN_FEEDS")))
        let logits = setting("STAND_IN_LOGITS").split(separator: " ").compactMap { Float($0) }
        return Dictionary(uniqueKeysWithValues: outputNames.map { ($0, ORTValue(output: logits)) })
    }
}
