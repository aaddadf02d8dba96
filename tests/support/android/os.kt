// Just enough of this package's API to type-check the sample.

package android.os
class Bundle
object Build { @JvmField val SUPPORTED_ABIS: Array<String> = arrayOf() }
